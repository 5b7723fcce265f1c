"""The part of a plan that a run needs, as frozen values.

The compiler's own model of a plan (pydantic, every key) is not for a machine that only trains;
times, pictures and reasons are left out here. `dnic.runtime.bundle` reads it from `plan.yaml`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from dnic.errors import RuntimeFault
from dnic.runtime.chunks import LOOPED, fitting_processes, usual_processes

Size = int | str
# One of these two, or the name of a predictor (`dnic.runtime.registry`).
Gradient = str
AWAITED = ("exact", "stale")
Precision = Literal["fp32", "bf16"]
Interval = Literal["step", "epoch"]
Mode = Literal[
    "decoupled",
    "stale",
    "exact",
    "oracle",
    "backprop",
    "ddp",
    "gpipe",
    "1f1b",
    "interleaved",
    "zerobubble",
    "zbv",
    "alone",
]
MessageDtype = Literal["float32", "bfloat16"]
Fallback = Literal["exact", "none"]
Key = str | int
Path = tuple[Key, ...]

PLAN_FILE = "plan.yaml"
# Modes in which a stage has no replicas: the undivided model, and torch's pipelines.
UNREPLICATED: tuple[Mode, ...] = ("backprop", "ddp", "gpipe", "1f1b", *LOOPED)


@dataclass(frozen=True)
class TensorSpec:
    """A tensor that crosses from one stage to another; sizes that follow the batch are strings.

    `message_dtype` is what it and its gradient are on the way; None: `dtype`.
    """

    name: str
    shape: tuple[Size, ...]
    dtype: str
    differentiable: bool
    message_dtype: str | None = None

    def resolve(self, batch_size: int) -> tuple[int, ...]:
        """The shape at one batch size."""
        return resolve(self.shape, batch_size)


@dataclass(frozen=True)
class HeadPlan:
    """What predicts the gradients of an interface: a head, a tail, or what a plug-in brings.

    Attributes:
        hidden_layers, width: of its networks; a width of None is full.
        context: whether a head sees the targets; an interface's `context` are further tensors.
        lr: its learning rate.
        one_in: it learns from one in so many samples of each batch.
        train_every: it learns from every so many batches whose gradients come back.
        options: further keys, as its kind knows them.
    """

    hidden_layers: int = 1
    width: int | None = None
    context: Literal["target", "none"] = "target"
    lr: float = 1e-3
    one_in: int = 1
    train_every: int = 1
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True)
class GuardPlan:
    """When an interface does without its head (`dnic.runtime.guard`).

    Attributes:
        check_every: learnt batches of one check.
        patience: checks in a row that a head in use must fail before it is not used any more; one
            is enough if it is the first.
        retry_after: steps until it is tried again; twice as many every further time.
        minimum: part of the true gradient's variance that a head must explain more than; `auto` is
            what the source's kind asks for (`dnic.runtime.predictor`), and more of it where the
            true gradient is itself predicted further up (`dnic.runtime.crossing`).
        fallback: `exact` waits for the true gradient, `none` goes on with the gradient zero.
        proof: checks in a row that a head must pass before it is used.
        at_first: the same as `minimum` for a head that is not used yet, or not for long; `auto` is
            what the kind asks for, or `minimum` where that is a number.
        growth: the check in use from which on a head must explain more than `minimum`.
    """

    check_every: int = 25
    patience: int = 2
    retry_after: int = 500
    minimum: float | Literal["auto"] = "auto"
    fallback: Fallback = "exact"
    proof: int = 2
    at_first: float | Literal["auto"] = "auto"
    growth: int = 16

    def shares(self, minimum: float, at_first: float) -> tuple[float, float]:
        """`minimum` and `at_first` in numbers, from those that `auto` stands for."""
        if self.minimum != "auto":
            minimum = at_first = self.minimum
        return minimum, at_first if self.at_first == "auto" else self.at_first


@dataclass(frozen=True)
class InterfacePlan:
    """What crosses between two stages and where its gradient comes from.

    Attributes:
        message_dtype: of wider floating tensors and their gradients on the way; `float32` sends
            all as they are.
        return_every: the true gradient of every so many batches comes back; 0: of none, once the
            interface has warmed up.
        predict_weights: whether a stage that is late goes forward with the weights that it expects
            to have when it goes back (`stale` alone).
        warmup: where the gradient comes from while a late interface warms up: `exact`, in time, or
            what predicts it from nothing that comes back (`local`).
        warmup_until: part of the true gradient's variance at which a head has warmed up before its
            time; None: when its steps are over.
        guard: of the head; None: it is used whatever it is worth.
        context: tensors that its head sees beside what crosses, returned by the stage below.
        update_probability: of the stage above, in the mode of a run (`dnic.runtime.crossing`).
    """

    name: str
    source: int
    to: int
    tensors: tuple[TensorSpec, ...]
    gradient: Gradient
    head: HeadPlan | None
    window: int
    warmup_steps: int | Literal["auto"]
    message_dtype: MessageDtype = "float32"
    return_every: int = 1
    warmup_until: float | None = None
    guard: GuardPlan | None = None
    update_probability: float = 1.0
    predict_weights: bool = False
    warmup: Gradient = "exact"
    context: tuple[TensorSpec, ...] = ()

    @property
    def predicted(self) -> bool:
        """Whether a predictor yields its gradient, rather than waiting for it."""
        return self.gradient not in AWAITED

    @property
    def predicted_at_first(self) -> bool:
        """Whether a predictor yields its gradient until it has warmed up, and is late from then."""
        return self.gradient == "stale" and self.warmup != "exact"

    @property
    def predictor(self) -> str:
        """What predicts, at first or always; the gradient's own name where nothing does."""
        return self.warmup if self.predicted_at_first else self.gradient

    def learns_at_first(self, step: int) -> bool:
        """Whether that predictor learns from the batch of a step."""
        return self.head is None or step % self.head.train_every == 0

    @property
    def differentiable(self) -> tuple[TensorSpec, ...]:
        """The tensors through which a gradient flows back."""
        return tuple(tensor for tensor in self.tensors if tensor.differentiable)


@dataclass(frozen=True)
class StagePlan:
    """The tensors that a stage's `forward` takes and returns, in order."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class LrSchedulerPlan:
    """A `torch.optim.lr_scheduler` class by name, and after what it is stepped.

    Among its options `schedulers` are those that it joins: mappings of `name` and `options`.
    """

    name: str
    options: Mapping[str, Any]
    interval: Interval = "epoch"


@dataclass(frozen=True)
class TrainPlan:
    """How the bundle trains.

    Attributes:
        batch_size, epochs, seed: of a run, unless the command line says otherwise.
        optimizer, optimizer_options: a class of `torch.optim` and its arguments.
        scheduler: of the learning rate.
        clip_norm: largest norm of the gradients (`dnic.runtime.clipping`).
        precision: of the forward passes.
        recompute: which stages compute their activations again in the backward pass.
        compile: whether `torch.compile` compiles the stages.
        update_probability: of each stage in each step of a decoupled run (`dnic.runtime.updates`).
    """

    batch_size: int
    epochs: int
    seed: int
    optimizer: str
    optimizer_options: Mapping[str, Any]
    scheduler: LrSchedulerPlan | None = None
    clip_norm: float | None = None
    precision: Precision = "fp32"
    recompute: bool | tuple[int, ...] = False
    compile: bool = False
    update_probability: float = 1.0


@dataclass(frozen=True)
class SchedulePlan:
    """How the processes of a run work together, unless `--mode` says otherwise.

    Attributes:
        mode: as `train.py --mode`; `oracle` is for proofs, `alone` for measuring; neither is
            planned.
        processes: number of processes; None: as many as the mode takes at most.
        microbatches: parts into which batches are cut, where stages train.
        replicas: processes of each stage, which share every batch (`dnic.runtime.replicas`).
        shard: whether these hold a part of the stage's parameters each (`dnic.runtime.sharding`).
    """

    mode: Mode = "decoupled"
    processes: int | None = None
    microbatches: int = 1
    replicas: int = 1
    shard: bool = False


@dataclass(frozen=True)
class TargetPlan:
    """The second element of a training pair.

    `classes` is the number of categories when targets are class indices, None otherwise.
    """

    sample_shape: tuple[int, ...]
    dtype: str
    classes: int | None


@dataclass(frozen=True)
class InputSpec:
    """A tensor that the model takes from every batch.

    `path` is where it lies in a batch; a shape or dtype of None is not known.
    """

    name: str
    path: Path
    shape: tuple[Size, ...] | None = None
    dtype: str | None = None


@dataclass(frozen=True)
class SamplePlan:
    """How samples become batches that the model takes.

    Attributes:
        inputs: in the order of the first stage's `forward`; None in plans that say nothing of it
            (every part of a batch, by position).
        constants: plain arguments that no sample carries, by their path.
        target: entry of the targets where samples are mappings.
    """

    inputs: tuple[InputSpec, ...] | None = None
    constants: tuple[tuple[Path, Any], ...] = ()
    target: str | None = None


@dataclass(frozen=True)
class SharedPlan:
    """A parameter of which several stages use copies; its owner updates it.

    `name` is the first of its names in the model, `aliases` are the others.
    """

    name: str
    aliases: tuple[str, ...]
    owner: int
    holders: tuple[int, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """All of its names."""
        return (self.name, *self.aliases)


@dataclass(frozen=True)
class Plan:
    """The part of `plan.yaml` that a run needs.

    `output` is the shape of the model's output; None where that is no single tensor.
    """

    model: str
    samples: SamplePlan
    weights: Literal["file", "seed"]
    train: TrainPlan
    target: TargetPlan | None
    stages: tuple[StagePlan, ...]
    interfaces: tuple[InterfacePlan, ...]
    shared: tuple[SharedPlan, ...]
    digest: str
    files: Mapping[str, str]
    schedule: SchedulePlan = SchedulePlan()
    output: tuple[Size, ...] | None = None

    def processes(self, mode: Mode) -> int:
        """Processes that a run in a mode takes when nothing else is asked."""
        if mode == "backprop":
            return 1
        if mode == "ddp":
            return self.schedule.processes or len(self.stages) * self.schedule.replicas
        if mode in LOOPED:
            planned = self.schedule.processes
            fits = planned in fitting_processes(mode, len(self.stages))
            return planned if planned and fits else usual_processes(mode, len(self.stages))
        return len(self.stages) * self.replicas(mode)

    def replicas(self, mode: Mode) -> int:
        """Processes of each stage in a mode; torch's pipelines have one, whatever the plan says."""
        return 1 if mode in UNREPLICATED else self.schedule.replicas


def resolve(shape: tuple[Size, ...], batch_size: int) -> tuple[int, ...]:
    """A shape at one batch size."""
    return tuple(
        size if isinstance(size, int) else batch_multiple(size) * batch_size for size in shape
    )


def batch_multiple(size: str) -> int:
    """How many entries a size such as `"64*B"` holds for every sample.

    Raises:
        RuntimeFault: the size is neither `B` nor `<n>*B`.
    """
    if size == "B":
        return 1
    number = size.removesuffix("*B")
    if number == size or not number.isdigit():
        raise RuntimeFault(
            f"{size!r} is not a size", where=PLAN_FILE, expected='a number, "B" or "64*B"'
        )
    return int(number)
