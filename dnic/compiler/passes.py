"""The passes of the compiler, in order: from a spec to a plan, from a plan to a bundle.

Each pass takes frozen values and returns a new one, which its own room has checked. `observe` is
told of every pass and sees its result, so that progress can be shown and any value printed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dnic.codegen.planfile import read_plan_file
from dnic.codegen.write import bundle_files, check_target, staged
from dnic.compiler.ask import check_sources, device_profile, names_of, request_of, training_of
from dnic.compiler.load import Loaded, check_loss, load, target_of
from dnic.compiler.price import price
from dnic.compiler.probe_file import predictability_of
from dnic.compiler.trial import check_foresight, check_predictors
from dnic.cost import Costs
from dnic.errors import PartitionError, SpecError, VerifyError
from dnic.graph.batch import at_batch
from dnic.graph.build import build_graph, event_of_gap
from dnic.graph.graph import Graph
from dnic.partition import Decision, decide, make_plan
from dnic.partition.plan import Plan, PlannedConstant, PlannedInput
from dnic.proof.bundle import prove_bundle_split
from dnic.proof.proof_file import proof_file, write_proof
from dnic.proof.rung import Rung
from dnic.proof.split import MODEL_FAILS
from dnic.report.pictures import picture_files
from dnic.runtime.bundle import load_bundle
from dnic.spec import Spec
from dnic.spec.beside import imported_beside
from dnic.trace import TracedModel, capture_coarse, capture_fine, opened_by

Observe = Callable[[str, Any], None]

PASSES = ("load", "capture", "graph", "cost", "cut", "recapture", "plan", "emit", "prove", "write")


@dataclass(frozen=True)
class Planned:
    """Everything that was decided, and what it was decided on."""

    loaded: Loaded
    graph: Graph
    costs: Costs
    decision: Decision
    coarse: TracedModel
    plan: Plan


def check_pass(name: str | None) -> None:
    """Refuse the name of a pass that there is not.

    Raises:
        SpecError: names the passes.
    """
    if name is not None and name not in PASSES:
        raise SpecError(
            f"there is no pass {name!r}", where="--print-after", expected=", ".join(PASSES)
        )


def silent(name: str, value: Any) -> None:
    """Observe nothing."""


def plan_model(spec: Spec, observe: Observe = silent) -> Planned:
    """Decide everything, write nothing.

    Args:
        spec: what is asked for; `model.file` must be set.
        observe: called after each pass with its name and its result.

    Raises:
        SpecError, TraceError, PartitionError: what was asked for cannot be done.
    """
    loaded = _seen(observe, "load", load(spec))
    check_sources(spec)
    fine = _seen(observe, "capture", capture_fine(loaded.model, loaded.inputs))
    check_loss(loaded.source, fine)
    traced = build_graph(fine)
    training = training_of(spec, traced.batch_size)
    graph = _seen(observe, "graph", at_batch(traced, training.batch_size))
    # Before anything is measured, which takes longer than reading a file of another model.
    predictability = predictability_of(spec.partition.probe, traced)
    profile = device_profile(spec)
    costs, loader_us = price(spec, loaded, fine, traced, profile, training)
    costs = costs.at(graph.batch_size / traced.batch_size)
    _seen(observe, "cost", costs)
    request = request_of(spec, profile, traced)
    request = replace(request, predictability=predictability)
    target = target_of(loaded.target, graph)
    decision = _seen(observe, "cut", decide(graph, costs, request, target, loader_us=loader_us))
    placement = decision.chosen.placement
    opened = opened_by(fine, [event_of_gap(fine, gap) for gap in placement.cuts])
    coarse = _seen(observe, "recapture", capture_coarse(fine, loaded.inputs, opened))
    whole = at_batch(build_graph(coarse, fine), graph.batch_size)
    # What a stage calls an input is not always what the model does: `input` is Python's.
    called = {op.target: op.name for op in whole.operations if op.kind == "input"}
    plan = make_plan(
        whole,
        graph,
        costs,
        placement.cuts,
        request,
        training,
        target,
        placement,
    )
    model = plan.model.model_copy(
        update={
            "names": names_of(spec, loaded.source),
            "inputs": tuple(PlannedInput(name=called.get(n, n), path=p) for n, p in fine.inputs),
            "constants": tuple(PlannedConstant(path=p, value=v) for p, v in fine.constants),
            "target": loaded.target_key,
            "weights": "seed" if spec.model.meta else "file",
        }
    )
    plan = decision.told(plan.model_copy(update={"model": model}))
    return Planned(loaded, graph, costs, decision, coarse, _seen(observe, "plan", plan))


def compile_model(
    spec: Spec, folder: Path, *, force: bool = False, observe: Observe = silent
) -> tuple[Planned, Rung]:
    """Decide, emit, prove, write.

    Args:
        spec: what is asked for.
        folder: the bundle; appears only when rung 1 of the proof ladder has passed.
        force: replace a bundle that is there; its `runs/` stay.
        observe: called after each pass with its name and its result.

    Raises:
        SpecError, TraceError, PartitionError: what was asked for cannot be done.
        VerifyError: the stages do not compute what the model computes. A bug of ours.
    """
    check_target(folder, force=force)
    planned = plan_model(spec, observe)
    check_runs(planned)
    source = planned.loaded.source
    beside = imported_beside(source.path)
    files = bundle_files(planned.coarse, planned.plan, source.path.read_bytes(), beside)
    files |= picture_files(planned.plan)
    _seen(observe, "emit", files)
    with staged(folder, files) as temporary:
        runs = load_bundle(temporary).plan
        check_foresight(runs, planned.plan.train)
        if not spec.model.meta:
            check_predictors(runs, source.loss)
        rung = _seen(observe, "prove", prove_bundle_split(temporary, planned.loaded.inputs))
        write_proof(temporary, proof_file([rung], read_plan_file(temporary)))
        if not rung.passed:
            if rung.failures[0].startswith(MODEL_FAILS):
                raise VerifyError(
                    "the model fails by itself, without any stages; nothing was written",
                    where="; ".join(rung.failures[:3]),
                    expected="a model that runs forward and backward on example_inputs()",
                )
            raise VerifyError(
                "the stages do not compute what the model computes; nothing was written",
                where="; ".join(rung.failures[:3]),
                expected=f"equal within {rung.tolerance:g} of the largest magnitude",
                hint="please report this model; partition.cuts elsewhere may work",
            )
    _seen(observe, "write", folder)
    return planned, rung


def check_runs(planned: Planned) -> None:
    """Refuse to emit what a bundle cannot run yet.

    Raises:
        PartitionError: stages are named that are not there, or a plan cannot be in parts.
    """
    recompute, stages = planned.plan.train.recompute, len(planned.plan.stages)
    if not isinstance(recompute, bool) and any(number >= stages for number in recompute):
        raise PartitionError(
            f"train.recompute names stage {max(recompute)}, and there are {stages} stages",
            where="train.recompute",
            expected=f"true, false or a list of stages, each from 0 to {stages - 1}",
        )
    request, schedule = planned.decision.request, planned.plan.schedule
    if request.shard and not schedule.shard:
        raise PartitionError(
            f"partition.shard divides a stage among its replicas, and {schedule.mode} has none",
            where="partition.shard",
            expected="shard: false, or partition.replicas: 2 or more",
        )


def _seen(observe: Observe, name: str, value: Any) -> Any:
    observe(name, value)
    return value
