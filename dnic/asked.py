"""What the command line asks for, as a spec: a model file, a spec, options, an edited plan."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dnic.codegen.planfile import read_plan_file
from dnic.cost import is_stock
from dnic.errors import SpecError
from dnic.partition.plan import Plan, PlannedInterface, PlannedLrScheduler
from dnic.runtime.chunks import LOOPED, usual_processes
from dnic.spec import HeadSpec, Spec, load_spec, override, spec_from_mapping, starter
from dnic.spec.modelfile import load_model_file


def requested(
    model: Path | None,
    spec_file: Path | None,
    devices: str | None,
    plan: Path | None,
    *,
    meta: bool = False,
    schedule: str | None = None,
    probe: Path | None = None,
) -> Spec:
    """The spec that the command line means; options win over the files.

    Args:
        model: the model file, if one was named.
        spec_file: `--spec`.
        devices: `--devices`, as typed.
        plan: `--plan`: an edited plan, in place of model and spec.
        meta: `--meta`: without weights.
        schedule: `--schedule`: how to train.
        probe: `--probe`: how well gradients are predicted.

    Raises:
        SpecError: contradicting or missing arguments, or a bad file.
    """
    if plan is not None and (model or spec_file):
        raise SpecError(
            "--plan comes with neither a model file nor --spec: the bundle holds both",
            where="--plan",
            hint=f"dnic compile --plan {plan}",
        )
    if plan is not None and probe is not None:
        raise SpecError(
            "--plan comes without --probe: the plan says where each gradient comes from",
            where="--probe",
            hint="edit `gradient` in the plan, or compile the model again with --probe",
        )
    spec = spec_of_plan(plan) if plan else load_spec(spec_file) if spec_file else Spec()
    if model is not None:
        spec = override(spec, "model.file", str(model), option="MODEL.py")
    if devices is not None:
        spec = override(spec, "devices.count", _number(devices), option="--devices")
    if meta:
        spec = override(spec, "model.meta", True, option="--meta")
    if schedule is not None:
        spec = override(spec, "partition.schedule", schedule, option="--schedule")
    if probe is not None:
        spec = override(spec, "partition.probe", str(probe), option="--probe")
    if spec.model.file is None:
        raise SpecError(
            "no model file",
            where=str(spec_file) if spec_file else "the command line",
            expected="dnic compile MODEL.py, or model.file in the spec",
        )
    return spec


def spec_of_plan(path: Path) -> Spec:
    """The spec that leads to the plan of a bundle again, edits included.

    Raises:
        SpecError: the plan cannot be read, or asks for the impossible.
    """
    plan = read_plan_file(path)
    folder = path if path.is_dir() else path.parent
    profile = plan.prediction.profile
    names = plan.model.names.model_dump()
    names = {key: name for key, name in names.items() if name is not None or key == "loss"}
    return spec_from_mapping(
        {
            "model": {
                "file": str(folder / "model.py"),
                "build_model": names.pop("build"),
                "meta": plan.model.weights == "seed",
                **names,
            },
            "train": {
                **plan.train.model_dump(exclude={"optimizer", "scheduler"}),
                "optimizer": {"name": plan.train.optimizer.name, **plan.train.optimizer.options},
                "scheduler": _scheduler_again(plan.train.scheduler),
            },
            "devices": {
                "count": _devices_again(plan),
                "profile": profile if is_stock(profile) else "auto",
            },
            "partition": _partition_again(plan),
            "interfaces": {i.name: _interface_again(i, plan) for i in _interfaces_left(plan)},
        },
        str(path),
    )


def _scheduler_again(scheduler: PlannedLrScheduler | None) -> dict[str, Any] | None:
    """A planned scheduler as a spec has it: its arguments beside its name."""
    if scheduler is None:
        return None

    def flat(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
        given = dict(options)
        if "schedulers" in given:
            given["schedulers"] = [
                flat(row["name"], row.get("options") or {}) for row in given["schedulers"]
            ]
        return {"name": name, **given}

    return {**flat(scheduler.name, scheduler.options), "interval": scheduler.interval}


def default_folder(spec: Spec, plan: Path | None) -> Path:
    """`build/NAME`: after the model file, or its folder where the file is just `model.py`.

    Raises:
        SpecError: with `--plan` the folder must be said.
    """
    if plan is not None:
        raise SpecError(
            "--plan needs a folder to write to",
            where="-o",
            hint=f"-o {plan.parent if plan.suffix else plan} --force writes the bundle anew",
        )
    file = spec.model.file or Path("model.py")
    name = file.stem if file.stem != "model" else file.resolve().parent.name
    return Path("build") / name


def probe_files(spec: Spec, output: Path | None) -> tuple[Path, Path]:
    """Where a probe's data and picture go: beside the bundle where nothing else is said.

    Raises:
        SpecError: what was said does not end in `.json`.
    """
    data = output or default_folder(spec, None).with_name(
        f"{default_folder(spec, None).name}.probe.json"
    )
    if data.suffix != ".json":
        raise SpecError(
            f"a probe is written as JSON, not to {data}",
            where="-o",
            expected="a name that ends in .json; the picture gets the same with .svg",
            hint=f"-o {data}.json",
        )
    return data, data.with_suffix(".svg")


def write_starter(model: Path, output: Path, *, force: bool) -> None:
    """Write the commented starter spec for a model file.

    Raises:
        TraceError: the model file does not follow the convention.
        SpecError: the output exists.
    """
    load_model_file(model)
    if output.exists() and not force:
        raise SpecError(f"{output} exists", where="-o", hint="--force replaces it")
    folder = output.resolve().parent
    if not folder.is_dir():
        raise SpecError(f"there is no folder {folder}", where="-o")
    text = starter(os.path.relpath(model.resolve(), folder))
    with tempfile.NamedTemporaryFile("w", dir=folder, delete=False, encoding="utf-8") as file:
        file.write(text)
    Path(file.name).chmod(0o644)
    Path(file.name).replace(output)


def check_spec(path: Path) -> str:
    """Check a spec and the model file that it names; returns what was checked, in words.

    Raises:
        SpecError, TraceError: what is wrong.
    """
    spec = load_spec(path)
    if spec.model.file is None:
        return "ok; it names no model file"
    found = load_model_file(spec.model.file, spec.model)
    return f"ok; model file {found.path.name} offers {found.build_model.__name__}"


def _number(text: str) -> int | str:
    """A whole number as typed; the text itself where it is none, for the error to show."""
    try:
        return int(text)
    except ValueError:
        return text


def _interfaces_left(plan: Plan) -> list[PlannedInterface]:
    """The interfaces that are still there: a cut that was moved takes its settings with it.

    One that skips stages is there as long as no cut was moved.
    """
    unmoved = all(interface.after in plan.cuts for interface in plan.interfaces)
    return [
        interface
        for interface in plan.interfaces
        if unmoved or (interface.after in plan.cuts and interface.to == interface.source + 1)
    ]


def _interface_again(interface: PlannedInterface, plan: Plan) -> dict[str, Any]:
    """An interface of a plan in the words of a spec."""
    kept = {"gradient", "window", "warmup_steps", "warmup_until", "guard", "return_every"}
    kept |= {"predict_weights", "warmup"}
    again: dict[str, Any] = interface.model_dump(include=kept)
    again["message"] = {"float32": "fp32", "bfloat16": "bf16"}[interface.message]
    if interface.head is not None:
        asked = {"hidden_layers", "width", "context", "lr", "one_in", "train_every"}
        head = interface.head.model_dump(include=asked)
        own = interface.head.model_extra or {}
        named = {key: own[key] for key in own if key in HeadSpec.model_fields}
        others = {key: own[key] for key in own if key not in named}
        head |= named | ({"options": others} if others else {})
        if interface.context:
            own_words = (_word_of(tensor.name, plan) for tensor in interface.context)
            head["context"] = [*(["target"] * (head["context"] == "target")), *own_words]
        again["head"] = {key: value for key, value in head.items() if value is not None}
    return again


def _word_of(name: str, plan: Plan) -> str:
    """What a spec calls a tensor: the module that returns it, or its own name."""
    operations = (op for stage in plan.stages for op in stage.operations if op.name == name)
    return next((op.target for op in operations if op.kind == "module"), name)


def _devices_again(plan: Plan) -> int:
    """How many devices a plan was for."""
    mode, stages = plan.schedule.mode, len(plan.cuts) + 1
    usual = usual_processes(mode, stages) if mode in LOOPED else stages * plan.schedule.replicas
    return plan.schedule.processes or usual


def _partition_again(plan: Plan) -> dict[str, Any]:
    """Cuts and schedule of a plan in the words of a spec."""
    again: dict[str, Any] = {"schedule": plan.schedule.mode}
    if plan.schedule.mode != "ddp":
        again["cuts"] = list(plan.cuts)
    if plan.schedule.microbatches > 1:
        again["microbatches"] = plan.schedule.microbatches
    if plan.schedule.replicas > 1:
        again |= {"replicas": plan.schedule.replicas, "shard": plan.schedule.shard}
    return again
