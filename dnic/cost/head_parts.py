"""The pieces that heads are costed from: layers, walks through memory, how a tensor is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

from dnic.cost.profile import DeviceProfile

# `exact`, `stale`, or the name of a predictor (`dnic.runtime.registry`).
Source = str

FLOAT_BYTES = 4
_MOST_POSITION_AXES = 3


@dataclass(frozen=True)
class TargetSize:
    """What heads see of the targets.

    Attributes:
        shape: of one sample's targets; () for one class per sample.
        classes: number of categories; None for real values.
    """

    shape: tuple[int, ...]
    classes: int | None


@dataclass(frozen=True)
class HeadCost:
    """Size and time of heads.

    Attributes:
        parameters: number of parameters.
        forward_us: predicting the gradient of one batch.
        train_us: learning from one batch: forward again, backward, Adam's step.
        unaveraged: parameters whose gradients replicas have no need to average, as none uses them
            in a batch.
    """

    parameters: int = 0
    forward_us: float = 0.0
    train_us: float = 0.0
    unaveraged: int = 0

    @property
    def averaged_bytes(self) -> int:
        """What replicas average when they learn from a batch."""
        return FLOAT_BYTES * (self.parameters - self.unaveraged)

    @property
    def total_us(self) -> float:
        """Microseconds that they add to a step."""
        return self.forward_us + self.train_us

    def step_us(self, learns_every: int) -> float:
        """Microseconds that they add to a mean step, if they learn in one of so many steps."""
        return self.forward_us + self.train_us / learns_every

    def at_first(self) -> HeadCost:
        """The same heads where late gradients begin with them: what they add to a mean step."""
        from dnic.runtime.crossing import PREDICTED_SHARE

        forward_us, train_us = self.forward_us * PREDICTED_SHARE, self.train_us * PREDICTED_SHARE
        return replace(self, forward_us=forward_us, train_us=train_us)

    def __add__(self, other: HeadCost) -> HeadCost:
        return HeadCost(
            self.parameters + other.parameters,
            self.forward_us + other.forward_us,
            self.train_us + other.train_us,
            self.unaveraged + other.unaveraged,
        )


@dataclass(frozen=True)
class Part:
    """A piece of a head: its parameters, in how many tensors, and its forward time."""

    parameters: int
    tensors: int
    forward_us: float

    def __add__(self, other: Part) -> Part:
        return Part(
            self.parameters + other.parameters,
            self.tensors + other.tensors,
            self.forward_us + other.forward_us,
        )


def layout_of(sample: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
    """Features, and sizes of the position axes; positions () for one vector per sample."""
    if len(sample) <= 1:
        return prod(sample), ()
    if not channels_first(sample):
        return sample[-1], sample[:-1]
    sizes = sample[1:]
    if len(sizes) > _MOST_POSITION_AXES:
        kept = _MOST_POSITION_AXES - 1
        sizes = (*sizes[:kept], prod(sizes[kept:]))
    return sample[0], sizes


def channels_first(sample: tuple[int, ...]) -> bool:
    """Whether features precede positions: in maps, but for a square of positions before features.

    Such squares (`[14, 14, 384]`) come from attention over windows.
    """
    square = len(sample) == 3 and sample[0] == sample[1] != sample[2]
    return len(sample) >= 3 and not square


def linear(inputs: int, outputs: int, rows: int, profile: DeviceProfile) -> Part:
    """A linear layer with bias."""
    parameters = inputs * outputs + outputs
    moved = FLOAT_BYTES * (rows * (inputs + outputs) + parameters)
    time_us = profile.operation_us(2 * rows * inputs * outputs, moved) if rows else 0.0
    return Part(parameters, 2, time_us)


def element_wise(operations: int, elements: int, profile: DeviceProfile) -> Part:
    """Operations that read and write so many elements each."""
    time_us = profile.operation_us(0, 2 * FLOAT_BYTES * elements)
    return Part(0, 0, operations * time_us)
