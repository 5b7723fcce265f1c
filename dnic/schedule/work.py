"""What a schedule is computed from and what comes out: times, bytes, links; nothing about models.

Times are microseconds at the full batch, on a device that is free. A part of the batch (a
microbatch, a replica's share) takes `fixed + (full - fixed) * share`: launching operations and
reading weights do not shrink with the batch. The cost model (`dnic.cost`) fills these in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import reduce
from itertools import pairwise
from typing import Literal

from dnic.cost import Link
from dnic.errors import PartitionError

Source = Literal["exact", "synthetic", "virtual", "local", "stale"]
How = Literal["formula", "simulated", "bound"]

_LOCAL = Link(name="free", bandwidth_bytes_per_s=1e30, latency_us=0.0)


@dataclass(frozen=True)
class StageWork:
    """One step of one stage at the full batch.

    Attributes:
        forward_us, backward_us: of the full batch, fixed parts included.
        forward_fixed_us, backward_fixed_us: the parts that do not shrink with the batch.
        weight_us: the part of `backward_us` that only the parameters' gradients need.
        update_us: the optimizer's step.
        loader_us: fetching the batch; counts where the stage is the first.
        parameter_bytes, gradient_bytes, optimizer_bytes: do not depend on the batch.
        activation_bytes: kept from forward to backward, at the full batch.
        gradient_tensors: how many parameters `gradient_bytes` are of.
        replicas: devices that share the batch of this stage.
    """

    forward_us: float
    backward_us: float
    forward_fixed_us: float = 0.0
    backward_fixed_us: float = 0.0
    update_us: float = 0.0
    loader_us: float = 0.0
    parameter_bytes: int = 0
    gradient_bytes: int = 0
    optimizer_bytes: int = 0
    activation_bytes: int = 0
    replicas: int = 1
    gradient_tensors: int = 0
    weight_us: float = 0.0

    def __post_init__(self) -> None:
        _none_negative(self)
        if self.replicas < 1:
            raise PartitionError(f"a stage has {self.replicas} replicas", expected="1 or more")

    def forward_at(self, share: float) -> float:
        """Microseconds of the forward pass of a part of the batch, 0 to 1."""
        return _at(self.forward_us, self.forward_fixed_us, share)

    def backward_at(self, share: float) -> float:
        """Microseconds of the backward pass of a part of the batch, 0 to 1."""
        return _at(self.backward_us, self.backward_fixed_us, share)

    def weight_at(self, share: float) -> float:
        """The part of it that only the parameters' gradients need."""
        whole = self.backward_us
        return self.backward_at(share) * self.weight_us / whole if whole else 0.0

    @property
    def state_bytes(self) -> int:
        """Parameters, their gradients and what the optimizer keeps for them."""
        return self.parameter_bytes + self.gradient_bytes + self.optimizer_bytes

    def __add__(self, other: StageWork) -> StageWork:
        """Both on one device, without replicas."""
        sums = {f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)}
        return StageWork(**{**sums, "replicas": 1})


@dataclass(frozen=True)
class CutWork:
    """What crosses between two stages in one step at the full batch, and its gradient's source.

    Attributes:
        nbytes, back_nbytes: of the activation (with targets) and of its gradient.
        link: one way; the other way is like it and does not disturb it.
        source: where the gradient comes from; `exact` is waited for, `local` sends nothing back.
        message_us: processor time that the activation's message takes on each end, lost to
            computing.
        message_fixed_us: the part of it that does not shrink with the message.
        back_message_us: the same for the gradient's message; None: as `message_us`.
        predict_us, learn_us: the head's, in a mean step.
        head_bytes: parameters of the head.
        averaged_bytes: what replicas of the stage average whenever the head learns.
        learns_every: it learns in one of so many steps.
        window: batches in flight at most; of no meaning where the source is `exact`.
        source_stage, to: indices of the stages; None: the cut's own index and the next.
    """

    nbytes: int
    back_nbytes: int
    link: Link = _LOCAL
    source: Source = "exact"
    message_us: float = 0.0
    message_fixed_us: float = 0.0
    back_message_us: float | None = None
    predict_us: float = 0.0
    learn_us: float = 0.0
    head_bytes: int = 0
    averaged_bytes: int = 0
    learns_every: int = 1
    window: int = 2
    source_stage: int | None = None
    to: int | None = None

    def __post_init__(self) -> None:
        _none_negative(self)
        if self.window < 1:
            raise PartitionError(f"a window of {self.window}", expected="1 or more")
        if self.learns_every < 1:
            raise PartitionError(
                f"a head that learns every {self.learns_every} steps", expected="1 or more"
            )

    @property
    def has_head(self) -> bool:
        """Whether the stage goes on with a gradient that a module of its own yields."""
        return self.source in ("synthetic", "virtual", "local")

    @property
    def returns(self) -> bool:
        """Whether a gradient travels back."""
        return self.source != "local"

    def message_at(self, share: float) -> float:
        """Processor time of the activation's message on one end, for a part of the batch."""
        return _at(self.message_us, self.message_fixed_us, share)

    def back_message_at(self, share: float) -> float:
        """Processor time of the gradient's message on one end, for a part of the batch."""
        full = self.message_us if self.back_message_us is None else self.back_message_us
        return _at(full, min(self.message_fixed_us, full), share)

    def occupancy_us(self, share: float = 1.0) -> float:
        """Microseconds for which the activation, or a part of it, keeps the link busy."""
        return self.nbytes * share / self.link.bandwidth_bytes_per_s * 1e6

    def back_occupancy_us(self, share: float = 1.0) -> float:
        """Microseconds for which the gradient, or a part of it, keeps the link busy."""
        return self.back_nbytes * share / self.link.bandwidth_bytes_per_s * 1e6


@dataclass(frozen=True)
class Machine:
    """What does not belong to one stage.

    Attributes:
        step_us: of the training loop, in each step of each device.
        microbatch_us: of a pipeline's schedule, for each forward and each backward of a
            microbatch.
        reduce_bytes_per_s, reduce_latency_us: of an all-reduce, see `allreduce_us`; None: the
            link's.
        reduce_tensor_us: of an all-reduce, for each parameter.
        skew: share of computing time that replicas lose where they meet in every step.
        overlap: part of the all-reduce that runs beside backward, 0 to 1. 0 where the reduction
            needs the core that computes (gloo), 1 where it has a stream of its own (NCCL).
        overhead_us, message_bytes_per_s: of handing a message over, see `message_us`.
        division: share of a backward pass that doing it in two parts adds to it.
        link: between any two devices, for all-reduce where nothing else is known.
    """

    step_us: float = 0.0
    microbatch_us: float = 0.0
    reduce_bytes_per_s: float | None = None
    reduce_latency_us: float | None = None
    reduce_tensor_us: float = 0.0
    skew: float = 0.0
    overlap: float = 0.0
    overhead_us: float = 0.0
    message_bytes_per_s: float = 1e30
    division: float = 0.0
    link: Link = _LOCAL

    def __post_init__(self) -> None:
        _none_negative(self)
        if self.overlap > 1:
            raise PartitionError(f"an overlap of {self.overlap}", expected="0 to 1")

    def message_us(self, nbytes: float) -> float:
        """Processor time that a message of so many bytes takes on each end."""
        return self.overhead_us + nbytes / self.message_bytes_per_s * 1e6

    def allreduce_us(self, nbytes: float, devices: int) -> float:
        """A ring all-reduce: `2(n-1)` messages of an n-th, one after the other.

        Patarasuk and Yuan 2009 (doi 10.1016/j.jpdc.2008.09.002), section 3.
        """
        if devices == 1 or nbytes == 0:
            return 0.0
        bandwidth = self.reduce_bytes_per_s or self.link.bandwidth_bytes_per_s
        latency = self.reduce_latency_us
        latency = self.link.latency_us if latency is None else latency
        rounds = 2 * (devices - 1)
        return rounds * latency + rounds / devices * nbytes / bandwidth * 1e6


@dataclass(frozen=True)
class Outcome:
    """How one way to train does.

    Attributes:
        name: of the way.
        devices: how many it uses.
        step_us: from one update to the next, when it runs steadily.
        samples_per_s: at the given batch.
        bubble: share of all devices' time in which they neither compute nor handle messages.
        busy: share of the step that each device is not idle.
        peak_memory_bytes: of each device.
        link_bytes: of each cut, in one step: forward and back, over all replicas. For data
            parallel one entry: what each device sends and what it receives.
        staleness: of each stage, updates between computing an activation and updating with its
            gradient.
        head_lateness: of each cut, updates between computing an activation and training its head.
        bottleneck: what sets the step's time.
        how: `formula` is exact for the model, `simulated` ran it, `bound` is a lower bound.
    """

    name: str
    devices: int
    step_us: float
    samples_per_s: float
    bubble: float
    busy: tuple[float, ...]
    peak_memory_bytes: tuple[int, ...]
    link_bytes: tuple[tuple[int, int], ...]
    staleness: tuple[int, ...]
    bottleneck: str
    how: How
    head_lateness: tuple[int, ...] = ()


def outcome(
    name: str,
    step_us: float,
    busy_us: Sequence[float],
    *,
    batch: int,
    peak_memory_bytes: Sequence[int],
    link_bytes: Sequence[tuple[int, int]],
    staleness: Sequence[int],
    bottleneck: str,
    how: How,
    head_lateness: Sequence[int] = (),
) -> Outcome:
    """An `Outcome` from the time that each device is busy in a step."""
    # Work of nothing takes no time; its devices are idle, not undefined.
    busy = tuple(min(1.0, us / step_us) if step_us > 0 else 0.0 for us in busy_us)
    return Outcome(
        name=name,
        devices=len(busy),
        step_us=step_us,
        samples_per_s=batch / step_us * 1e6 if step_us > 0 else float("inf"),
        bubble=1 - sum(busy) / len(busy),
        busy=busy,
        peak_memory_bytes=tuple(peak_memory_bytes),
        link_bytes=tuple(link_bytes),
        staleness=tuple(staleness),
        bottleneck=bottleneck,
        how=how,
        head_lateness=tuple(head_lateness),
    )


def joined(stages: Sequence[StageWork]) -> StageWork:
    """All stages on one device.

    Raises:
        PartitionError: there are none.
    """
    if not stages:
        raise PartitionError("a schedule without stages")
    return reduce(StageWork.__add__, stages)


def ends(cuts: Sequence[CutWork]) -> list[tuple[int, int]]:
    """Source and destination of each cut: as it says, or its own index and the next."""
    return [
        (
            i if cut.source_stage is None else cut.source_stage,
            i + 1 if cut.to is None else cut.to,
        )
        for i, cut in enumerate(cuts)
    ]


def is_chain(stages: Sequence[StageWork], cuts: Sequence[CutWork]) -> bool:
    """Whether one cut joins each stage with the next, in order."""
    return ends(cuts) == list(pairwise(range(len(stages))))


def check(stages: Sequence[StageWork], cuts: Sequence[CutWork]) -> None:
    """Check that cuts lead forward, between stages that exist.

    Raises:
        PartitionError: there are no stages, or a cut leads elsewhere.
    """
    if not stages:
        raise PartitionError("a schedule without stages")
    for source, to in ends(cuts):
        if not 0 <= source < to < len(stages):
            raise PartitionError(
                f"a cut leads from stage {source} to stage {to} of {len(stages)}",
                expected="forward, between two stages",
            )


def check_chain(stages: Sequence[StageWork], cuts: Sequence[CutWork]) -> None:
    """Check that one cut joins each stage with the next: all that pipelines know.

    Raises:
        PartitionError: otherwise, or where a stage has replicas.
    """
    check(stages, cuts)
    if not is_chain(stages, cuts):
        raise PartitionError(
            "the cuts do not join each stage with the next",
            expected=f"{len(stages) - 1} cuts, in order",
        )
    if any(stage.replicas > 1 for stage in stages):
        raise PartitionError(
            "a pipeline of replicated stages", expected="replicas = 1", hint="use `decoupled`"
        )


def _at(full_us: float, fixed_us: float, share: float) -> float:
    return fixed_us + (full_us - fixed_us) * share


def _none_negative(value: StageWork | CutWork | Machine) -> None:
    for f in fields(value):
        entry = getattr(value, f.name)
        if isinstance(entry, int | float) and not 0 <= entry < float("inf"):
            raise PartitionError(
                f"{f.name} is {entry}",
                where=type(value).__name__,
                expected="a finite number, not negative",
            )
