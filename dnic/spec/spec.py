"""What a user may ask for: the models of the YAML file.

Frozen pydantic models, so that the same lines hold the keys, their defaults, their limits and the
words of the JSON schema and of the starter file. They say nothing about the model that is compiled:
whether a cut names a real module is for the partitioner to check.
"""

from __future__ import annotations

from keyword import iskeyword
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from dnic.spec.devices import DevicesSpec, Text, printable
from dnic.spec.expect import (
    Auto,
    Count,
    CountOrAuto,
    CountOrNone,
    NotNegative,
    StepsOrAuto,
    complaint,
    expected,
    shown,
)
from dnic.spec.guard import GuardSection, GuardSpec
from dnic.spec.head import HeadSpec as HeadSpec
from dnic.spec.nearest import nearest
from dnic.spec.optimizer import OptimizerSpec
from dnic.spec.scheduler import SchedulerSpec
from dnic.spec.section import Section, overlay

DEFAULT = "default"


def _identifier(name: str) -> str:
    if not name.isidentifier() or iskeyword(name):
        raise ValueError
    return name


def _file(value: object) -> str:
    if not isinstance(value, str | Path):
        raise ValueError
    return printable(str(value))


def _paths(value: object, *at: int) -> tuple[str, ...]:
    """A list of module paths. A bare number is the path of an entry of `nn.Sequential`."""
    if not isinstance(value, list | tuple):
        raise complaint(f"{{}} cannot be {shown(value)}", expected="a list of module paths", at=at)
    paths = []
    for index, entry in enumerate(value):
        path = str(entry) if type(entry) is int and 0 <= entry < 2**31 else entry
        if not isinstance(path, str) or not path.strip() or not path.isprintable():
            raise complaint(
                f"{{}} cannot be {shown(entry)}",
                expected="the dotted path of a module",
                hint="quotes around it" if isinstance(entry, float) else "",
                at=(*at, index),
            )
        if path in paths:
            raise complaint(
                f"{{}} names {shown(path)} a second time",
                expected="every module path once",
                at=(*at, index),
            )
        paths.append(path)
    return tuple(paths)


def _cuts(value: object) -> object:
    if isinstance(value, str) and value != "auto":
        raise complaint(
            f"{{}} cannot be {shown(value)}",
            expected="a list of module paths, or auto",
            hint=f"[{value}]" if value.isprintable() else "",
        )
    return value if value == "auto" else _paths(value)


def _groups(value: object) -> tuple[tuple[str, ...], ...]:
    if not isinstance(value, list | tuple):
        raise complaint(
            f"{{}} cannot be {shown(value)}",
            expected="a list of lists of module paths, such as [[embedding, head]]",
        )
    return tuple(_paths(group, index) for index, group in enumerate(value))


def _stage_numbers(value: object) -> object:
    if isinstance(value, bool):
        return value
    numbers = value if isinstance(value, list | tuple) else None
    if numbers is None or not all(type(n) is int and 0 <= n < 2**31 for n in numbers):
        raise ValueError
    return tuple(sorted(set(numbers)))


def _gradient(value: object) -> str:
    """A source's name. Whether one that is not dnic's is registered shows with the model file."""
    if value in GRADIENTS:
        return str(value)
    if not isinstance(value, str) or not value.isidentifier() or nearest(value, GRADIENTS):
        raise ValueError
    return value


def _source(value: object) -> str:
    if value == "auto":
        raise ValueError
    return _gradient(value)


def _beginning(value: object) -> str:
    """What a late interface may warm up with: a source that needs no true gradients."""
    if value in NEEDING:
        raise ValueError
    return _gradient(value)


Precision = Literal["fp32", "bf16"]
# What dnic brings; others are registered (`dnic.runtime.registry`), by a package or the model file.
SOURCES = ("exact", "synthetic", "virtual", "local", "none", "stale")
GRADIENTS = ("auto", *SOURCES)
NEEDING = ("stale", "synthetic", "virtual")
BEGINNINGS = tuple(name for name in GRADIENTS if name not in NEEDING)
Message = Literal["auto", "fp32", "bf16"]
# What a bundle can run as; `backprop` is the undivided model on one device.
Schedule = Literal[
    "auto",
    "decoupled",
    "stale",
    "exact",
    "1f1b",
    "gpipe",
    "interleaved",
    "zerobubble",
    "ddp",
    "backprop",
]

Name = Annotated[str, AfterValidator(_identifier), expected("the name of a Python function")]


class ModelSpec(Section):
    """The model file, and the names of the functions that dnic calls in it."""

    file: Annotated[
        Annotated[Path, BeforeValidator(_file)] | None,
        expected("the path of a Python file, relative to this spec"),
    ] = Field(default=None, description="the Python file of the model, relative to this spec")
    build_model: Name = Field(default="build_model", description="build_model() -> nn.Module")
    example_inputs: Name = Field(
        default="example_inputs", description="one batch: a tuple or mapping of tensors"
    )
    loss: Name | None = Field(
        default="loss", description="loss(output, target) -> a scalar; null: the model's own"
    )
    train_data: Name = Field(default="train_data", description="a Dataset of (input, target)")
    test_data: Name = Field(default="test_data", description="the same, held out")
    meta: bool = Field(
        default=False,
        description="plan without weights, on the meta device",
    )


class TrainSpec(Section):
    """How the bundle trains; `batch_size` None is that of `example_inputs`."""

    batch_size: CountOrNone = Field(
        default=None, description="samples per step; auto: as example_inputs"
    )
    epochs: Count = Field(default=5, description="passes over train_data")
    optimizer: OptimizerSpec = Field(
        default=OptimizerSpec(), description="the same for every stage"
    )
    scheduler: SchedulerSpec | None = Field(
        default=None, description="of lr: {name: CosineAnnealingLR, T_max: 5, interval: epoch}"
    )
    clip_norm: Annotated[
        Annotated[float, Field(strict=True, gt=0, allow_inf_nan=False)] | None,
        expected("a number above 0, or null"),
    ] = Field(
        default=None,
        description="largest norm of gradients; decoupled: * sqrt(stage's share)",
    )
    precision: Annotated[
        Precision,
        expected("fp32 or bf16", get_args(Precision), later=("fp16", "tf32", "fp64", "fp8")),
    ] = Field(default="fp32", description="fp32, or bf16: autocast of forward and loss")
    recompute: Annotated[
        bool | tuple[int, ...],
        BeforeValidator(_stage_numbers),
        expected("true, false or a list of stage numbers, such as [0, 1]"),
    ] = Field(default=False, description="activations, going back: true, or stages [0, 2]")
    compile: Annotated[Annotated[bool, Field(strict=True)], expected("true or false")] = Field(
        default=False, description="torch.compile every stage"
    )
    update_probability: Annotated[
        Annotated[float, Field(strict=True, gt=0, le=1)],
        expected("a number above 0, and at most 1"),
    ] = Field(default=1.0, description="of each stage in each step, in decoupled runs")
    seed: Annotated[
        Annotated[int, Field(strict=True, ge=0, lt=2**32)],
        expected("a whole number from 0 to 4294967295"),
    ] = Field(default=0, description="of initial weights, shuffling and dropout")

    @model_validator(mode="after")
    def _scheduler_suits_optimizer(self) -> Self:
        if self.scheduler is not None:
            self.scheduler.check_with(self.optimizer.make())
        return self


class PartitionSpec(Section):
    """Where to cut the model."""

    stages: CountOrAuto = Field(
        default="auto", description="number of stages; auto: up to one per device"
    )
    cuts: Annotated[tuple[str, ...] | Auto, BeforeValidator(_cuts)] = Field(
        default="auto", description="cut after these modules: [layer1, layer2.0]"
    )
    schedule: Annotated[
        Schedule,
        expected(
            f"one of {', '.join(get_args(Schedule))}",
            {name: name for name in get_args(Schedule)}
            | {"one_device": "backprop", "dni": "decoupled", "zero_bubble": "zerobubble"},
        ),
    ] = Field(default="auto", description="how to train; auto: what is predicted to be fastest")
    microbatches: CountOrAuto = Field(default="auto", description="of pipelines and exact")
    replicas: CountOrAuto = Field(default="auto", description="copies of a stage")
    shard: Annotated[Annotated[bool, Field(strict=True)], expected("true or false")] = Field(
        default=False, description="replicas hold a part of their stage each (FSDP2)"
    )
    max_decoupled_interfaces: CountOrNone = Field(
        default=None, description="predict gradients at so many at most; auto: no limit"
    )
    keep_together: Annotated[tuple[tuple[str, ...], ...], BeforeValidator(_groups)] = Field(
        default=(), description="groups of modules, each in one stage: [[embed, head]]"
    )
    probe: Annotated[
        Annotated[Path, BeforeValidator(_file)] | None,
        expected("the path of a probe.json, relative to this spec"),
    ] = Field(default=None, description="what dnic probe wrote: how well gradients are predicted")

    @model_validator(mode="after")
    def _stages_fit_cuts(self) -> Self:
        if self.stages != "auto" and self.cuts != "auto" and self.stages != len(self.cuts) + 1:
            raise complaint(
                f"{{}} is {self.stages}, but the cuts make {len(self.cuts) + 1}",
                expected="one stage more than cuts, or stages: auto",
                at=("stages",),
            )
        return self


class PenaltySpec(Section):
    """Steps that a source of gradients costs at a cut, as a share of all steps: 0.05 is 5% more."""

    synthetic: Annotated[
        float,
        Field(strict=True, ge=0, le=10, allow_inf_nan=False),
        expected("a number from 0 to 10: 0.05 for 5% more steps"),
    ] = Field(default=0.0, description="of a predicted gradient: 0.05 is 5% more steps")
    virtual: Annotated[
        float,
        Field(strict=True, ge=0, le=10, allow_inf_nan=False),
        expected("a number from 0 to 10: 0.05 for 5% more steps"),
    ] = Field(default=0.0, description="of a virtual tail's gradient")
    local: Annotated[
        float,
        Field(strict=True, ge=0, le=10, allow_inf_nan=False),
        expected("a number from 0 to 10: 0.05 for 5% more steps"),
    ] = Field(default=0.0, description="of a local loss")
    stale: Annotated[
        float,
        Field(strict=True, ge=0, le=10, allow_inf_nan=False),
        expected("a number from 0 to 10: 0.05 for 5% more steps"),
    ] = Field(default=0.0, description="of a late gradient")


class InterfaceSpec(Section):
    """How the gradient at an interface is obtained.

    `warmup_steps` `auto` is 5% of all steps, at most 200, none of a local loss, and half of all
    where late gradients begin with one; only the run knows their number.
    """

    gradient: Annotated[
        Annotated[str, BeforeValidator(_gradient)],
        expected(f"one of {', '.join(GRADIENTS)}, or a registered source", GRADIENTS),
    ] = Field(default="auto", description="auto, exact, synthetic, virtual, local, none, stale")
    head: HeadSpec = Field(default=HeadSpec(), description="predicts the gradient")
    sources: tuple[
        Annotated[
            Annotated[str, BeforeValidator(_source)],
            expected(f"one of {', '.join(SOURCES)}, or a registered source", SOURCES),
        ],
        ...,
    ] = Field(
        default=("synthetic", "virtual", "local", "stale"),
        description="what auto may take; exact makes a locked group",
    )
    penalty: PenaltySpec = Field(
        default=PenaltySpec(), description="more steps for the same quality, by source"
    )
    window: CountOrAuto = Field(
        default="auto", description="batches in flight before the sender waits"
    )
    warmup: Annotated[
        Annotated[str, BeforeValidator(_beginning)],
        expected(f"one of {', '.join(BEGINNINGS)}, or a registered source", BEGINNINGS),
    ] = Field(default="auto", description="what stale begins with: auto, exact, local, none")
    warmup_steps: StepsOrAuto = Field(
        default="auto", description="steps on true gradients first; auto: 5% of all, at most 200"
    )
    warmup_until: Annotated[
        Annotated[float, Field(strict=True, lt=1, allow_inf_nan=False)] | None,
        expected("a number below 1, or null: 0.1 for a tenth of the gradient's variance"),
    ] = Field(
        default=None,
        description="or until the head explains this part: 0.1 is a tenth",
    )
    guard: GuardSection = Field(
        default=GuardSpec(), description="does without a head that is of no use"
    )
    message: Annotated[
        Message,
        expected(
            "one of auto, fp32, bf16",
            {name: name for name in get_args(Message)} | {"float32": "fp32", "bfloat16": "bf16"},
        ),
    ] = Field(default="auto", description="auto, fp32 or bf16: of tensors on the way")
    return_every: Annotated[NotNegative, expected("a whole number of at least 0")] = Field(
        default=1, description="send the true gradient of every so many batches back; 0: none"
    )
    predict_weights: Annotated[Annotated[bool, Field(strict=True)], expected("true or false")] = (
        Field(default=False, description="stale: forward with the weights expected by then")
    )

    @model_validator(mode="after")
    def _returns_fit_gradient(self) -> Self:
        if self.return_every != 1 and self.gradient in ("exact", "stale"):
            raise complaint(
                f"{{}} is {self.return_every} where the gradient is {self.gradient}",
                expected="1; only a predicted gradient does without the true one",
                at=("return_every",),
            )
        return self


class Spec(Section):
    """A whole spec. Use `interface` rather than `interfaces`: it fills in what is inherited."""

    model: ModelSpec = Field(
        default=ModelSpec(), description="the model file and the functions in it"
    )
    train: TrainSpec = Field(default=TrainSpec(), description="how the bundle trains")
    devices: DevicesSpec = Field(default=DevicesSpec(), description="what to compile for")
    partition: PartitionSpec = Field(default=PartitionSpec(), description="where to cut the model")
    interfaces: Annotated[
        dict[Annotated[Text, expected("a module path")], InterfaceSpec],
        AfterValidator(lambda given: {DEFAULT: InterfaceSpec(), **given}),
        BeforeValidator(lambda value: {} if value is None else value),
    ] = Field(
        default={DEFAULT: InterfaceSpec()},
        description="by module path or operation name; unset keys come from default",
    )

    def interface_names(self) -> tuple[str, ...]:
        """The interfaces that have settings of their own, in the order of the file."""
        return tuple(name for name in self.interfaces if name != DEFAULT)

    def interface(self, name: str) -> InterfaceSpec:
        """Settings of the interface after module or operation `name`.

        Keys that its own entry does not give come from the entry `default`, keys that this does
        not give either from the defaults; keys of `head` one by one.
        """
        default = self.interfaces.get(DEFAULT, InterfaceSpec())
        own = self.interfaces.get(name)
        return default if own is None else overlay(default, own)


def json_schema() -> dict[str, Any]:
    """JSON schema of the spec file, for editors that complete and check YAML."""
    return Spec.model_json_schema(by_alias=True)
