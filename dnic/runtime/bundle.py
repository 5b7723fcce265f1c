"""A bundle on disk, as the machine that trains sees it: the part of `plan.yaml` that a run needs.

The compiler has its own, stricter model of a plan; the runtime must not import the compiler, so
this reader takes just what a run uses into frozen values and ignores the rest (times, pictures,
reasons). It also answers whether the files still belong together: `structure_digest` covers what
`stages.py` was generated from, the SHA-256 sums in `plan.yaml` cover the files themselves. What a
person may edit (`train`, `schedule`, and each interface's `gradient`, `head`, `window`,
`warmup`, `warmup_steps`, `warmup_until`, `guard`, `message`, `return_every`, `predict_weights`) is
in neither.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, get_args

import yaml

from dnic.errors import RuntimeFault
from dnic.runtime.guardplan import check_supervised, read_guard
from dnic.runtime.plan import (
    AWAITED,
    HeadPlan,
    InputSpec,
    InterfacePlan,
    MessageDtype,
    Plan,
    SamplePlan,
    SharedPlan,
    Size,
    StagePlan,
    TargetPlan,
    TensorSpec,
    batch_multiple,
)
from dnic.runtime.plan import PLAN_FILE as PLAN_FILE
from dnic.runtime.registry import BUILT_IN, is_name
from dnic.runtime.scheduleplan import PLANNED_MODES as PLANNED_MODES
from dnic.runtime.scheduleplan import check_schedule, read_schedule
from dnic.runtime.trainplan import check_sparse_updates, check_training, read_training

COMPILE_AGAIN = "dnic compile --plan plan.yaml writes the generated files anew"


@dataclass(frozen=True)
class Bundle:
    """A folder that `dnic compile` wrote."""

    folder: Path
    plan: Plan

    @property
    def stages(self) -> int:
        """Number of stages, which is the number of processes that a run takes."""
        return len(self.plan.stages)


def structure_digest(plan: Mapping[str, Any]) -> str:
    """SHA-256, in hex, of what `stages.py` was generated from.

    Covers, in order, the stages' inputs, outputs, modules and operation names and the interfaces'
    ends and tensors (name, shape, dtype, differentiable).

    Args:
        plan: the content of `plan.yaml`, or the same as a pydantic dump `by_alias=True`.
    """
    stages = [
        {
            "inputs": list(stage["inputs"]),
            "outputs": list(stage["outputs"]),
            "modules": list(stage["modules"]),
            "operations": [operation["name"] for operation in stage["operations"]],
        }
        for stage in plan["stages"]
    ]
    interfaces = [
        {
            "from": interface["from"],
            "to": interface["to"],
            "tensors": [
                [t["name"], list(t["shape"]), t["dtype"], t["differentiable"]]
                for t in interface["tensors"]
            ],
        }
        for interface in plan["interfaces"]
    ]
    text = json.dumps([stages, interfaces], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def load_bundle(folder: Path) -> Bundle:
    """Reads a bundle's plan and checks that its files still belong to it.

    Raises:
        RuntimeFault: there is no plan, it cannot be read, or a generated file was edited.
    """
    bundle = Bundle(folder, read_plan(folder / PLAN_FILE))
    check_files(bundle)
    return bundle


def check_files(bundle: Bundle) -> None:
    """Compares every file that the plan lists with its recorded SHA-256 sum.

    Raises:
        RuntimeFault: names the first file that is missing or differs.
    """
    for name, recorded in bundle.plan.files.items():
        path = bundle.folder / name
        if not path.is_file():
            raise RuntimeFault(f"{name} is missing", where=str(path), hint=COMPILE_AGAIN)
        if hashlib.sha256(path.read_bytes()).hexdigest() != recorded:
            raise RuntimeFault(
                f"{name} was edited and no longer matches {PLAN_FILE}",
                where=str(path),
                expected=f"train.py and the training keys of {PLAN_FILE} are the ones to edit",
                hint=COMPILE_AGAIN,
            )


def check_stages(bundle: Bundle, compiled: str) -> None:
    """Compares the digest that `stages.py` carries with that of the plan.

    Raises:
        RuntimeFault: `plan.yaml` was edited in a part that `stages.py` was generated from.
    """
    if bundle.plan.digest != compiled:
        raise RuntimeFault(
            f"stages.py was generated from another plan than this {PLAN_FILE}",
            where=str(bundle.folder / PLAN_FILE),
            expected="the stages, and the tensors of the interfaces, as they were compiled",
            hint=COMPILE_AGAIN,
        )


def read_plan(path: Path) -> Plan:
    """Reads the part of a `plan.yaml` that a run needs.

    Raises:
        RuntimeFault: there is no such file, it is no YAML, or a key is missing or wrong.
    """
    if not path.is_file():
        raise RuntimeFault(
            "this folder is not a bundle", where=str(path.parent), expected=path.name
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RuntimeFault(f"cannot be read as YAML: {error}", where=str(path)) from error
    with _wrong_keys_named(path):
        plan = _plan(content)
    check_plan(plan, path)
    return plan


def with_replicas(bundle: Bundle, replicas: int | None) -> Bundle:
    """The bundle with another number of replicas; None: as planned. One is never in parts."""
    if replicas is None:
        return bundle
    schedule = bundle.plan.schedule
    schedule = replace(schedule, replicas=replicas, shard=schedule.shard and replicas > 1)
    return replace(bundle, plan=replace(bundle.plan, schedule=schedule))


def check_plan(plan: Plan, path: Path) -> None:
    """Checks what a hand edit can break and a run would only meet much later.

    Raises:
        RuntimeFault: names the key and the values that it may take.
    """
    for interface in plan.interfaces:
        where = f"{path}: interfaces: {interface.name}"
        # Whether a source of another name is registered shows where the bundle trains.
        if not is_name(interface.gradient):
            raise RuntimeFault(
                f"gradient {interface.gradient!r} is not known",
                where=where,
                expected=", ".join([*AWAITED, *BUILT_IN]),
            )
        known = get_args(MessageDtype)
        if interface.message_dtype not in known:
            raise RuntimeFault(
                f"message {interface.message_dtype!r} is not known",
                where=where,
                expected=", ".join(known),
            )
        if (
            interface.gradient == "synthetic"
            and interface.differentiable
            and interface.head is None
        ):
            raise RuntimeFault(
                "a synthetic gradient needs a head",
                where=where,
                expected="head: {hidden_layers: 1, width: 64, context: target, lr: 1.0e-3}",
            )
        if interface.head is not None and interface.head.one_in < 1:
            raise RuntimeFault(
                f"one_in {interface.head.one_in} is too small",
                where=f"{where}: head",
                expected="1 to learn from whole batches, 4 for a quarter of each",
            )
        if interface.window < 1:
            raise RuntimeFault(
                f"window {interface.window} is too small", where=where, expected="1 or more"
            )
        _check_returns(interface, where)
        _check_context(interface, plan, where)
        check_supervised(interface, where)
    check_schedule(plan.schedule, len(plan.stages), path)
    check_training(plan.train, len(plan.stages), path)
    check_sparse_updates(plan, path)


def _check_returns(interface: InterfacePlan, where: str) -> None:
    if interface.return_every < 0:
        raise RuntimeFault(
            f"return_every {interface.return_every} is too small",
            where=where,
            expected="1 or more; 0 where no gradient is to come back",
        )
    if interface.return_every != 1 and not interface.predicted:
        raise RuntimeFault(
            f"return_every {interface.return_every} where the gradient is {interface.gradient}",
            where=where,
            expected="return_every: 1; only a head goes on without the true gradient",
        )
    if interface.predict_weights and interface.gradient != "stale":
        raise RuntimeFault(
            f"predict_weights where the gradient is {interface.gradient}",
            where=where,
            expected="gradient: stale, which alone goes back with weights that have moved on",
        )


def _check_context(interface: InterfacePlan, plan: Plan, where: str) -> None:
    stage = plan.stages[interface.source]
    for tensor in interface.context:
        if tensor.name not in stage.outputs:
            raise RuntimeFault(
                f"the head is to see {tensor.name}, which {stage.name} does not return",
                where=f"{where}: context",
                expected=f"some of {', '.join(stage.outputs)}",
                hint="name it in the spec, head: {context: [...]}, and " + COMPILE_AGAIN,
            )


@contextmanager
def _wrong_keys_named(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise RuntimeFault(
            f"the key {error.args[0]!r} is missing", where=str(path), hint=COMPILE_AGAIN
        ) from error
    except (TypeError, ValueError) as error:
        raise RuntimeFault(
            f"a value has the wrong type: {error}", where=str(path), hint=COMPILE_AGAIN
        ) from error


def _plan(content: Mapping[str, Any]) -> Plan:
    model = content["model"]
    weights = model.get("weights", "file")
    if weights not in ("file", "seed"):
        raise ValueError(f"model: weights: {weights!r} is neither file nor seed")
    return Plan(
        model=str(model["name"]),
        samples=SamplePlan(
            inputs=_inputs(model.get("inputs"), content["stages"]),
            constants=tuple(
                (tuple(row["path"]), row["value"]) for row in model.get("constants") or ()
            ),
            target=model.get("target"),
        ),
        weights=weights,
        train=read_training(content["train"]),
        target=_target(content.get("target")),
        stages=tuple(
            StagePlan(str(stage["name"]), tuple(stage["inputs"]), tuple(stage["outputs"]))
            for stage in content["stages"]
        ),
        interfaces=tuple(_interface(interface) for interface in content["interfaces"]),
        shared=tuple(
            SharedPlan(
                str(row["name"]),
                tuple(row.get("aliases") or ()),
                int(row["owner"]),
                tuple(int(holder) for holder in row["holders"]),
            )
            for row in content.get("shared") or ()
        ),
        digest=structure_digest(content),
        files=dict(content.get("files") or {}),
        schedule=read_schedule(content.get("schedule") or {}),
        output=_output(content),
    )


def _output(content: Mapping[str, Any]) -> tuple[Size, ...] | None:
    """The shape of the tensor that the model returns, where it is one that is known."""
    operations = content["stages"][-1]["operations"]
    shapes = {row["name"]: row.get("shape") for row in operations}
    for interface in content["interfaces"]:
        shapes.update({row["name"]: row["shape"] for row in interface["tensors"]})
    returned = [row for row in operations if row.get("kind") == "output"]
    names = returned[0].get("inputs") or [] if returned else []
    shape = shapes.get(names[0]) if len(names) == 1 else None
    return None if shape is None else tuple(shape)


def _inputs(
    rows: Sequence[Mapping[str, Any]] | None, stages: Sequence[Mapping[str, Any]]
) -> tuple[InputSpec, ...] | None:
    """The model's inputs; their shapes stand among the first stage's operations."""
    if not rows:
        return None
    operations = {row["name"]: row for row in stages[0]["operations"] if row.get("kind") == "input"}
    inputs = []
    for row in rows:
        shape = row.get("shape", operations.get(row["name"], {}).get("shape"))
        inputs.append(
            InputSpec(
                str(row["name"]),
                tuple(row["path"]),
                None if shape is None else tuple(shape),
                row.get("dtype"),
            )
        )
    return tuple(inputs)


def _target(content: Mapping[str, Any] | None) -> TargetPlan | None:
    if content is None:
        return None
    whole = TensorSpec("target", tuple(content["shape"]), str(content["dtype"]), False)
    classes = content.get("classes")
    return TargetPlan(whole.resolve(1)[1:], whole.dtype, None if classes is None else int(classes))


def _interface(content: Mapping[str, Any]) -> InterfacePlan:
    head = content.get("head")
    warmup = content.get("warmup_steps", "auto")
    return InterfacePlan(
        name=str(content["name"]),
        source=int(content["from"]),
        to=int(content["to"]),
        tensors=tuple(_tensor(tensor) for tensor in content["tensors"]),
        gradient=content["gradient"],
        head=_head(head) if head else None,
        window=int(content.get("window", 1)),
        warmup_steps="auto" if warmup == "auto" else int(warmup),
        message_dtype=content.get("message", "float32"),
        return_every=int(content.get("return_every", 1)),
        warmup_until=content.get("warmup_until"),
        guard=read_guard(content.get("guard")),
        predict_weights=bool(content.get("predict_weights", False)),
        warmup=str(content.get("warmup", "exact")),
        context=tuple(_tensor(tensor) for tensor in content.get("context") or ()),
    )


def _tensor(content: Mapping[str, Any]) -> TensorSpec:
    shape: Sequence[Size] = content["shape"]
    for size in shape:
        if isinstance(size, str):
            batch_multiple(size)
    return TensorSpec(
        str(content["name"]), tuple(shape), str(content["dtype"]), bool(content["differentiable"])
    )


def _head(content: Mapping[str, Any]) -> HeadPlan:
    width = content.get("width")
    # Sizes and times are predictions; what is left are options of the head's kind.
    known = {row.name for row in fields(HeadPlan)} | {"parameters", "forward_us", "train_us"}
    return HeadPlan(
        hidden_layers=int(content.get("hidden_layers", 1)),
        width=None if width is None else int(width),
        context=content.get("context", "target"),
        lr=float(content.get("lr", 1e-3)),
        one_in=int(content.get("one_in", 1)),
        train_every=int(content.get("train_every", 1)),
        options=MappingProxyType({key: content[key] for key in content if key not in known}),
    )
