"""Everything decided at compile time, as data: what `plan.yaml` holds.

The plan is the one thing that the code generator, the runtime and the pictures read. Frozen
pydantic models, so that a plan that a person edited is checked as strictly as a spec. The runtime
reads the same file with its own small reader (`dnic.runtime.bundle`), because it must not import
the compiler.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from dnic.graph.shape import Shape
from dnic.partition.guard import DEFAULT_GUARD, PlannedGuard
from dnic.partition.part import Part


class PlannedNames(Part):
    """What the functions of the convention are called in the model file.

    `build` is a function or a class, called without arguments; `train_data` and `test_data` are
    None where the file has none. `loss` is None where the model computes its own.
    """

    build: str = "build_model"
    example_inputs: str = "example_inputs"
    loss: str | None = "loss"
    train_data: str | None = "train_data"
    test_data: str | None = "test_data"


class PlannedInput(Part):
    """A tensor that the model takes.

    `name` is what the first stage calls it; `path` is where it lies in a batch: `[input_ids]` for
    a keyword, `[0]` for a position, `[0, mask]` for an entry of a nested one.
    """

    name: str
    path: tuple[str | int, ...]


class PlannedConstant(Part):
    """A plain argument of the model that no sample carries, such as `use_cache: false`."""

    path: tuple[str | int, ...]
    value: bool | int | float | str | None


class PlannedModel(Part):
    """The model as captured; sizes at `batch_size`.

    `inputs` are in the order of the first stage's `forward`. `target` is the entry that holds the
    targets where samples are mappings; None where they are pairs of (input, target). `weights` says
    where initial weights come from: `init.safetensors`, or `build_model()` from the seed (planned
    on the meta device).
    """

    name: str
    names: PlannedNames = PlannedNames()
    parameters: int
    parameter_bytes: int
    batch_size: int
    operations: int
    inputs: tuple[PlannedInput, ...] = ()
    constants: tuple[PlannedConstant, ...] = ()
    target: str | None = None
    weights: Literal["file", "seed"] = "file"


class PlannedTarget(Part):
    """The second element of a training pair, as batched.

    `classes` is the number of categories when targets are integers that index the last axis (or
    axis 1, for maps) of the model's output; None for real-valued targets.
    """

    shape: Shape
    dtype: str
    classes: int | None = None


class PlannedOptimizer(Part):
    """A `torch.optim` class by name and its keyword arguments."""

    name: str = "AdamW"
    options: dict[str, Any] = Field(default_factory=lambda: {"lr": 1e-3})


class PlannedLrScheduler(Part):
    """A `torch.optim.lr_scheduler` class by name, its arguments, and after what it is stepped.

    Schedulers that it joins are mappings of `name` and `options` among its arguments.
    """

    name: str
    options: dict[str, Any] = Field(default_factory=dict)
    interval: Literal["step", "epoch"] = "epoch"


class PlannedTraining(Part):
    """How the bundle trains; every key may be edited without compiling again.

    Attributes:
        batch_size, epochs, seed: of a run, unless its command line says otherwise.
        optimizer: the same for every stage.
        scheduler: of its learning rate.
        clip_norm: largest norm of the gradients: of all stages together where they wait for one
            another anyway; where they do not, each stage's is at most
            `clip_norm * sqrt(its share of the parameters)`.
        precision: of forward passes and losses; `bf16` is torch's autocast.
        recompute: whether activations are computed again in the backward pass; or which stages'.
        compile: whether `torch.compile` compiles the stages.
        update_probability: with which each stage updates in each step of a decoupled run.
    """

    batch_size: int
    epochs: int
    optimizer: PlannedOptimizer
    scheduler: PlannedLrScheduler | None = None
    clip_norm: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    precision: Literal["fp32", "bf16"] = "fp32"
    recompute: bool | tuple[int, ...] = False
    compile: bool = False
    update_probability: float = Field(default=1.0, gt=0, le=1)
    seed: int = 0


class PlannedSchedule(Part):
    """How the processes of a run work together; may be edited without compiling again.

    Attributes:
        mode: `decoupled` with the interfaces as planned; `exact`: each waits for its gradient, with
            microbatches under our own 1F1B; `stale`: true gradients, late, in place of predicted
            ones; `gpipe`, `1f1b`, `interleaved`, `zerobubble`, `zbv`: torch's pipeline schedules
            over the stages, the last three with several stages in a process; `ddp`: the undivided
            model in every process, each with a share of every batch; `backprop`: in one process.
        processes: number of processes; None: one for each stage, or what a looped schedule takes.
            Only `ddp` runs on any number.
        microbatches: parts into which batches are cut, where stages train.
        replicas: processes of each stage, which share every batch; not with torch's schedules.
        shard: whether each of them holds a part of the stage's parameters (FSDP2), or all (DDP).
    """

    mode: Literal[
        "decoupled",
        "stale",
        "exact",
        "ddp",
        "gpipe",
        "1f1b",
        "interleaved",
        "zerobubble",
        "zbv",
        "backprop",
    ] = "decoupled"
    processes: int | None = Field(default=None, ge=1)
    microbatches: int = Field(default=1, ge=1)
    replicas: int = Field(default=1, ge=1)
    shard: bool = False


class PlannedOperation(Part):
    """An operation of the coarse capture, as it appears in `stages.py` and in pictures.

    `time_share` is its part of the model's forward and backward time on one device, 0 to 1. A
    `repeated` one follows from constants and is computed by every stage that uses it.
    """

    name: str
    kind: str
    target: str
    module: str = ""
    module_class: str = ""
    inputs: tuple[str, ...] = ()
    shape: Shape | None = None
    parameters: int = 0
    time_share: float = 0.0
    repeated: bool = False


class PlannedStage(Part):
    """A connected set of operations on one device.

    Attributes:
        name: `stage0`, `stage1`, ...
        device: index of the device, which is the rank; several stages may be on one.
        inputs, outputs: names of the tensors in the order in which the stage's `forward` takes and
            returns them; the last stage's outputs are `["output"]`: the model's own output.
        modules: dotted paths of the submodules, parameters and buffers that it holds.
        operations: in execution order.
        parameters: number of parameters.
        forward_us, backward_us: predicted time of one batch.
        memory_bytes: parameters, gradients, optimizer state and activations, predicted.
    """

    name: str
    device: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    modules: tuple[str, ...]
    operations: tuple[PlannedOperation, ...]
    parameters: int
    parameter_bytes: int
    forward_flops: int
    forward_us: float
    backward_us: float
    memory_bytes: int
    time_share: float


class PlannedTensor(Part):
    """A tensor that crosses an interface."""

    name: str
    shape: Shape
    dtype: str
    nbytes: int
    differentiable: bool


class PlannedHead(Part):
    """The module that predicts the gradient at an interface.

    `width` is the rank of the hidden layers; None means full width (0 hidden layers: one linear
    map without a bottleneck). It learns from one in `one_in` samples of every `train_every`-th
    batch whose gradients come back. `forward_us` and `train_us` are predicted, of one batch.
    Further keys are options of its kind: `task`, `targets` and `loss` of tails
    (`dnic.runtime.tail_options`), or what a registered source knows.
    """

    model_config = ConfigDict(frozen=True, extra="allow", populate_by_name=True)

    hidden_layers: int = Field(ge=0, le=3)
    width: int | None = None
    context: Literal["target", "none"] = "target"
    lr: float = 1e-3
    one_in: int = Field(default=1, ge=1)
    train_every: int = Field(default=1, ge=1)
    parameters: int = 0
    forward_us: float = 0.0
    train_us: float = 0.0


class PlannedInterface(Part):
    """The tensors that cross from one stage to another and how their gradient is obtained.

    `gradient`, `head`, `window`, `warmup`, `warmup_steps`, `warmup_until`, `guard`, `message`,
    `return_every` and `predict_weights` may be edited without compiling again. `after` is the cut:
    the dotted path of the last module (or the name of the last operation) before it. Targets always
    travel from each stage to the next, beside these tensors. Wider floating tensors and their
    gradients travel as `message`; `nbytes` and `transfer_us` are of the message forward.

    Attributes:
        context: what a head sees beside the activation and the targets; the stage returns them.
        gradient: `exact`, `stale` or the name of what predicts it.
        warmup: what a late gradient begins with: `exact`, in time, or the name of what predicts it.
        return_every: the true gradients of every so many batches come back; 0: none.
        predict_weights: a stage that is late goes forward with the weights that it expects to have.
    """

    name: str
    source: int = Field(alias="from")
    to: int
    after: str
    tensors: tuple[PlannedTensor, ...]
    context: tuple[PlannedTensor, ...] = ()
    nbytes: int
    gradient: str = Field(pattern=r"^[^\W\d]\w*$")
    head: PlannedHead | None = None
    window: int = Field(default=1, ge=1)
    warmup: str = Field(default="exact", pattern=r"^[^\W\d]\w*$")
    warmup_steps: int | Literal["auto"] = "auto"
    warmup_until: float | None = Field(default=None, lt=1, allow_inf_nan=False)
    guard: PlannedGuard | Literal[False] = DEFAULT_GUARD
    message: Literal["float32", "bfloat16"] = "float32"
    return_every: int = Field(default=1, ge=0)
    predict_weights: bool = False
    transfer_us: float = 0.0
    reason: str = ""

    @property
    def predicted(self) -> bool:
        """Whether its gradient is predicted, rather than waited for."""
        return self.gradient not in ("exact", "stale")

    @property
    def differentiable(self) -> tuple[PlannedTensor, ...]:
        """The tensors through which a gradient flows back."""
        return tuple(tensor for tensor in self.tensors if tensor.differentiable)


class PlannedShared(Part):
    """A parameter that several stages use: one parameter, of which the other stages hold copies.

    The owner updates it, with the gradients of all summed, and sends the new value to the holders
    before their next step. `name` is the first of its names in the model, `aliases` the others.
    `nbytes` go to each holder, and come back as a gradient, in every step.
    """

    name: str
    aliases: tuple[str, ...] = ()
    owner: int
    holders: tuple[int, ...]
    nbytes: int


class PlannedAlternative(Part):
    """One way to train the model on these devices, as predicted.

    Attributes:
        name: of the way, such as `ddp` or `1f1b`.
        mode: what a bundle that runs it has as its schedule; None where none can yet.
        samples_per_s: at the captured batch size.
        useful_samples_per_s: the same, less what the interfaces' penalties take back.
        step_us: from one update to the next.
        devices, stages, microbatches: how the model is divided.
        windows: of the decoupled interfaces.
        peak_memory_bytes: of the device that needs most.
        memory_bytes: of each device.
        busy: share of the step that each device is busy.
        bubble: share of all devices' time that is lost.
        link_bytes: over every cut in one step, both ways; for `ddp` over every device's link.
        staleness: of each stage, updates between an activation and the update with its gradient.
        bottleneck: what sets the step's time.
        unfit: why it cannot run on these devices; empty where it can.
        how: `formula`, `simulated`, or `bound` for a lower bound of the step.
        proven: whether no other order of the devices can be better.
    """

    name: str
    mode: str | None
    samples_per_s: float
    useful_samples_per_s: float
    step_us: float
    devices: int
    stages: int
    microbatches: int
    windows: tuple[int, ...]
    peak_memory_bytes: int
    memory_bytes: tuple[int, ...]
    busy: tuple[float, ...]
    bubble: float
    link_bytes: tuple[int, ...]
    staleness: tuple[int, ...]
    bottleneck: str
    unfit: str
    how: str
    proven: bool = True


class PlannedVerdict(Part):
    """Whether to decouple.

    `speedup` is that of the decoupled stages over the best exact way that runs; 0 without any.
    """

    decouple: bool
    speedup: float
    best: str
    reason: str


class Prediction(Part):
    """Steady-state step times that the cost model predicts, in microseconds.

    `costs` tells whether operations were measured. `verdict` is None in plans that were made for
    given cuts without looking at alternatives.
    """

    profile: str
    backprop_us: float
    step_us: float
    speedup: float
    bottleneck: str
    costs: Literal["analytic", "measured"] = "analytic"
    verdict: PlannedVerdict | None = None
    alternatives: tuple[PlannedAlternative, ...] = ()


class Plan(Part):
    """The whole plan.

    `cuts` names, for each stage but the last, the module or operation that it ends with;
    `files` holds the SHA-256 of every generated file that must match the plan.
    """

    dnic: str
    model: PlannedModel
    train: PlannedTraining
    schedule: PlannedSchedule = PlannedSchedule()
    target: PlannedTarget | None
    cuts: tuple[str, ...] = ()
    stages: tuple[PlannedStage, ...]
    interfaces: tuple[PlannedInterface, ...]
    shared: tuple[PlannedShared, ...] = ()
    prediction: Prediction
    files: dict[str, str] = Field(default_factory=dict)
