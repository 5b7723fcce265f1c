"""Climb the proof ladder with a bundle on disk.

1. `split`: the stages, one after the other, are the model (`dnic.proof.split`).
2. `exact`: the emitted program as real processes, every interface waiting for its gradient, follows
   plain backprop of the undivided model in one process.
3. `oracle`: the decoupled machinery, its heads running and training, but handed the true gradient,
   equals `exact`.

Where the plan's schedule is another one (`ddp`, one of torch's pipelines, `exact` with
microbatches, or stages with replicas, whose interfaces wait here), `schedule` comes after these:
the emitted program as planned follows plain backprop.

Dropout is off in rungs 2 and 3: each process has random numbers of its own. Rung 1 has it on.
Beside them stands a second opinion on the capture (`dnic.trace.crosscheck`), which fails nothing.
What was found is kept in the bundle (`dnic.proof.proof_file`).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dnic.codegen.planfile import read_plan_file
from dnic.partition.plan import Plan
from dnic.proof.additive import losses_add_up
from dnic.proof.modules import bundle_modules
from dnic.proof.proof_file import PROOF_FILE, proof_file, write_proof
from dnic.proof.rung import Rung, ladder
from dnic.proof.split import prove_split
from dnic.proof.tolerance import LOSSES, close, error
from dnic.runtime import Record, launch, read_record
from dnic.runtime.bundle import PLAN_FILE, Bundle, check_stages, load_bundle, read_plan
from dnic.runtime.names import INIT_FILE, load_initial
from dnic.runtime.options import PIPELINES
from dnic.runtime.plan import Mode
from dnic.trace import to_meta
from dnic.trace.crosscheck import CrossCheck, cross_check

STEPS = 20


def prove_bundle_split(folder: Path, inputs: Any = None) -> Rung:
    """Rung 1 on a bundle.

    Args:
        folder: the bundle.
        inputs: example inputs; None asks the bundle's model file.

    Raises:
        RuntimeFault: this is no bundle, or its files do not belong together.
        VerifyError: its files cannot be imported.
    """
    bundle = Bundle(folder, read_plan(folder / PLAN_FILE))
    plan = read_plan_file(folder)
    with bundle_modules(folder) as (model, stages):
        check_stages(bundle, stages.PLAN)
        if inputs is None:
            inputs = _example_inputs(model, plan)
        whole = _built(model, plan, folder)
        parts = _built(model, plan, folder)
        made = [stage(parts) for stage in stages.STAGES]
        return prove_split(whole, made, plan, inputs)


def check_bundle_capture(folder: Path) -> CrossCheck:
    """The second opinion on the capture of a bundle's model.

    Args:
        folder: the bundle.

    Raises:
        VerifyError: its files cannot be imported.
    """
    plan = read_plan_file(folder)
    with bundle_modules(folder) as (model_file, _):
        inputs = _example_inputs(model_file, plan)
        model = _built(model_file, plan, folder)
        if isinstance(inputs, Mapping):
            return cross_check(model, (), inputs)
        return cross_check(model, inputs)


def verify_bundle(folder: Path, begin: Callable[[str], None] = lambda rung: None) -> dict[str, Any]:
    """All three rungs and the check of the capture; kept in the bundle's `proof.json`.

    Args:
        folder: the bundle.
        begin: told the name of each rung before it is tried.

    Returns:
        The ladder as `dnic verify --json` prints it, with the check as `capture`; where the bundle
        cannot be written to, `unwritten` says why.

    Raises:
        RuntimeFault: this is no bundle, or its files do not belong together.
        VerifyError: its files cannot be imported.
    """
    load_bundle(folder)
    plan = read_plan_file(folder)
    begin("split")
    rungs = [prove_bundle_split(folder)]
    begin("capture")
    capture = check_bundle_capture(folder)
    rungs += _runs_compared(folder, plan, begin)
    result = {**ladder(rungs), "capture": capture.as_dict()}
    try:
        write_proof(folder, proof_file(rungs, plan, capture))
    except OSError as error:
        result["unwritten"] = f"{PROOF_FILE}: {error.strerror}"
    return result


def _runs_compared(folder: Path, plan: Plan, begin: Callable[[str], None]) -> list[Rung]:
    """Rungs 2 and 3."""
    if plan.model.names.train_data is None:
        without = "the model file has no train_data()"
        return [_untried(name, without) for name in ("exact", "oracle")]
    with tempfile.TemporaryDirectory(prefix="dnic-verify-") as temporary:
        runs = _Runs(folder, Path(temporary), len(plan.stages))
        begin("exact")
        record = runs.record("exact")
        backprop = "plain backprop in one process"
        rungs = [_compared("exact", record, runs.record("backprop"), backprop)]
        if len(plan.stages) == 1:
            rungs.append(_untried("oracle", "one stage has no interfaces"))
        else:
            begin("oracle")
            rungs.append(_compared("oracle", runs.record("oracle"), record, "the exact run"))
        schedule = plan.schedule
        cut = schedule.mode == "exact" and schedule.microbatches > 1
        if cut or schedule.replicas > 1 or schedule.mode in ("ddp", *PIPELINES):
            begin("schedule")
            rungs.append(_as_planned(folder, plan, runs))
        return rungs


@dataclass(frozen=True)
class _Runs:
    """Short recorded runs of one bundle."""

    folder: Path
    temporary: Path
    stages: int

    def record(self, mode: Mode, *, planned: bool = False) -> Record:
        """Losses and final parameters of `STEPS` steps; run once.

        Batches are whole, and stages have one process each, unless all is to be as `planned`.
        """
        name = "planned" if planned else mode
        kept = self.temporary / name
        if kept.is_dir():
            return read_record(kept)
        extra = ["--no-dropout", "--no-evaluate", "--no-checkpoint", f"--max-steps={STEPS}"]
        if not planned:
            extra += ["--microbatches=1", "--replicas=1"]
        # Rounding to bfloat16 would hide a difference; a scheduler may need evaluations.
        plain = ("--precision=fp32", "--no-scheduler")
        launch(
            self.folder,
            epochs=STEPS,
            mode=mode,
            processes=None if planned or mode == "backprop" else self.stages,
            out=self.temporary / f"run-{name}",
            quiet=True,
            extra=(*extra, *plain, f"--record={kept}", "--device=cpu"),
        )
        return read_record(kept)


def _as_planned(folder: Path, plan: Plan, runs: _Runs) -> Rung:
    """The planned schedule against backprop, where parts of a batch are as good as the batch."""
    mode, names = plan.schedule.mode, plan.model.names
    way: Mode = mode
    if mode in ("decoupled", "stale"):
        way = "exact"  # of the same replicas, which is what is in question
    if not losses_add_up(folder, names.build, names.loss, names.train_data or "train_data"):
        return _untried(
            "schedule",
            f"{way} takes parts of a batch, and the loss of a batch is not the mean of its parts' "
            "(BatchNorm, or a loss that is no mean over samples)",
        )
    record = runs.record(way, planned=True)
    replicas = plan.schedule.replicas
    what = f"{way}, {replicas} replicas of each stage" if replicas > 1 else way
    return _compared("schedule", record, runs.record("backprop"), f"backprop, with {what}")


def _compared(name: str, ours: Record, reference: Record, what: str) -> Rung:
    """Losses step by step; the parameters' difference is reported, not judged.

    An optimizer such as Adam divides a gradient by its own size: where that is all rounding, the
    smallest difference turns the sign of an update, so parameters that do not matter may drift.
    """
    pair = [torch.tensor(record.losses, dtype=torch.float64) for record in (ours, reference)]
    drift = max(
        (error(ours.parameters[key], reference.parameters[key]) for key in reference.parameters),
        default=0.0,
    )
    same_names = ours.parameters.keys() == reference.parameters.keys()
    passed = same_names and len(ours.losses) > 0 and close(pair[0], pair[1], LOSSES)
    failures = [] if passed else [f"losses {ours.losses} against {reference.losses}"]
    if not same_names:
        missing = ours.parameters.keys() ^ reference.parameters.keys()
        failures = [f"parameters on one side only: {', '.join(sorted(missing))}"]
    return Rung(
        name=name,
        passed=passed,
        max_abs_error=error(pair[0], pair[1]),
        tolerance=LOSSES,
        compared=len(ours.losses),
        detail=f"losses of {len(ours.losses)} steps against {what}; parameters differ by at most "
        f"{drift:.1e} at the end",
        failures=tuple(failures),
    )


def _untried(name: str, why: str) -> Rung:
    return Rung(name, None, 0.0, LOSSES, 0, f"not tried: {why}")


def _example_inputs(model_file: Any, plan: Plan) -> Any:
    """One batch: a tuple of positional arguments or a mapping of keyword arguments."""
    torch.manual_seed(plan.train.seed)
    given = getattr(model_file, plan.model.names.example_inputs)()
    if plan.model.weights == "seed":
        given = to_meta(given)
    if isinstance(given, Tensor):
        return (given,)
    return given if isinstance(given, Mapping) else tuple(given)


def _built(model_file: Any, plan: Plan, folder: Path) -> nn.Module:
    torch.manual_seed(plan.train.seed)
    build: Callable[[], nn.Module] = getattr(model_file, plan.model.names.build)
    if plan.model.weights == "seed":
        with torch.device("meta"):
            return build()
    model = build()
    load_initial(model, str(folder / INIT_FILE))
    return model
