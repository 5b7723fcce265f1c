"""One way to train a model on the given devices, and what is predicted of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from dnic.errors import PartitionError
from dnic.partition.choose import Placement
from dnic.partition.interfaces import Decided
from dnic.partition.plan import PlannedInterface
from dnic.partition.request import PartitionRequest
from dnic.schedule import Outcome

Name = Literal[
    "one_device",
    "ddp",
    "naive",
    "gpipe",
    "1f1b",
    "interleaved_1f1b",
    "zero_bubble",
    "1f1b_ddp",
    "decoupled",
    "decoupled_replicas",
    "stale",
    "synthetic",
    "virtual",
    "local",
]
Mode = Literal[
    "backprop",
    "ddp",
    "exact",
    "gpipe",
    "1f1b",
    "interleaved",
    "zerobubble",
    "decoupled",
    "stale",
]

# Of the names above, those that a bundle can run, and what its `--mode` is called. Those with
# replicas run where every stage has as many; their pipeline is our own engine's.
MODES: dict[Name, Mode] = {
    "one_device": "backprop",
    "ddp": "ddp",
    "naive": "exact",
    "gpipe": "gpipe",
    "1f1b": "1f1b",
    "interleaved_1f1b": "interleaved",
    "zero_bubble": "zerobubble",
    "decoupled": "decoupled",
    "stale": "stale",
    "1f1b_ddp": "exact",
    "decoupled_replicas": "decoupled",
    # The same processes with another predictor: `gradient` of their interfaces says so.
    "synthetic": "decoupled",
    "virtual": "decoupled",
    "local": "decoupled",
}


@dataclass(frozen=True)
class Alternative:
    """One way to train.

    Attributes:
        name: of the way.
        outcome: what is predicted.
        placement: where it cuts, and what runs where.
        microbatches: of a pipeline; 1 elsewhere.
        windows: of the decoupled interfaces.
        penalty: share of steps that it needs more for the same quality.
        unfit: why it cannot run on these devices; empty where it can.
        unasked: whether it must be named to be taken: what it costs in quality is not known here.
        own: whether our engine runs a pipeline that torch's schedules cannot.
    """

    name: Name
    outcome: Outcome
    placement: Placement
    microbatches: int = 1
    windows: tuple[int, ...] = ()
    penalty: float = 0.0
    unfit: str = ""
    unasked: bool = False
    own: bool = False
    decided: Decided | None = field(default=None, compare=False, repr=False)

    @property
    def decided_interfaces(self) -> tuple[PlannedInterface, ...]:
        """The interfaces, where they are decided."""
        return self.decided.interfaces if self.decided is not None else ()

    @property
    def mode(self) -> Mode | None:
        """What a bundle that runs it has as its `--mode`; None where there is none."""
        if self.replicas is None:
            return None
        return "exact" if self.own else MODES.get(self.name)

    @property
    def replicas(self) -> int | None:
        """Replicas of every stage; None where stages have different numbers of them."""
        counts = set(self.placement.replicas)
        return counts.pop() if len(counts) == 1 else None

    @property
    def runs(self) -> bool:
        """Whether a bundle can run it, on these devices."""
        return self.mode is not None and not self.unfit

    @property
    def eligible(self) -> bool:
        """Whether it may be taken without being named."""
        return self.runs and not self.unasked

    @property
    def decouples(self) -> bool:
        """Whether a stage goes on without its true gradient."""
        return MODES[self.name] in ("decoupled", "stale")

    @property
    def samples_per_s(self) -> float:
        """Predicted, as measured by a clock."""
        return self.outcome.samples_per_s

    @property
    def useful_samples_per_s(self) -> float:
        """What counts: samples a second, less those that the penalty takes back."""
        return self.outcome.samples_per_s / (1 + self.penalty)


def checked(alternative: Alternative, request: PartitionRequest) -> Alternative:
    """The same, with the reason where a device's memory is too small."""
    if alternative.unfit:
        return alternative
    limits: list[int | None] = []
    for group, copies in zip(
        alternative.placement.groups, alternative.placement.replicas, strict=True
    ):
        limits += [request.sorts[group].memory_bytes] * copies
    if alternative.name == "ddp" or alternative.placement.chunks > 1:
        limits = [group.memory_bytes for group in request.sorts for _ in range(group.count)]
    for index, (needed, limit) in enumerate(
        zip(alternative.outcome.peak_memory_bytes, limits, strict=False)
    ):
        if limit is not None and needed > limit:
            gib = 2**30
            return replace(
                alternative,
                unfit=f"device {index} needs {needed / gib:.3g} GiB and has {limit / gib:.3g} GiB",
            )
    return alternative


def fastest(found: Sequence[Alternative]) -> Alternative:
    """The first that a bundle can run and that need not be named.

    Raises:
        PartitionError: none can; says why, for each.
    """
    for alternative in found:
        if alternative.eligible:
            return alternative
    raise PartitionError(
        "no way to train this model fits these devices",
        where="; ".join(f"{a.name}: {a.unfit}" for a in found if a.unfit),
        hint="more devices, a smaller batch, or an optimizer that keeps less state",
    )
