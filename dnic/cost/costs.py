"""What a model costs on a device: one row for each operation of its graph.

Both cost models fill the same value. Times are of one training step on one device at the traced
batch size; `at` gives them for a share of it (a replica, a microbatch), `crowded` for a machine
whose other cores do the same.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from math import exp, log
from typing import Any, Literal, Protocol

from dnic.cost.profile import Crowded, DeviceProfile
from dnic.errors import DnicError
from dnic.graph.graph import Graph

Kind = Literal["analytic", "measured"]

_OPTIONAL_TIMES = ("forward_fixed_us", "backward_fixed_us", "arithmetic_share", "memory_share")
_OPTIONAL_COUNTS = (
    "forward_flops",
    "backward_flops",
    "forward_bytes",
    "backward_bytes",
    "gradient_tensors",
)
_COLUMNS = (
    "forward_us",
    "backward_us",
    "update_us",
    "activation_bytes",
    "parameter_bytes",
    "gradient_bytes",
    "optimizer_bytes",
    *_OPTIONAL_TIMES,
    *_OPTIONAL_COUNTS,
)


@dataclass(frozen=True)
class SharePoint:
    """How a whole model ran at a share of the batch, beside what its operations add up to.

    Attributes:
        share: of the traced batch, above 0.
        forward, backward: measured time over the sum of the operations' times at that share.
    """

    share: float
    forward: float
    backward: float


@dataclass(frozen=True)
class Crowding:
    """How many times longer this model takes while every other core runs one like it."""

    forward: float
    backward: float
    update: float


@dataclass(frozen=True)
class Costs:
    """Costs of a graph's operations, one entry for each, at the traced batch size.

    Attributes:
        operations: names, in the graph's order.
        forward_us, backward_us: microseconds of one batch.
        update_us: microseconds of the optimizer's step on the parameters that the operation is the
            first to use.
        activation_bytes: bytes that are kept from forward to backward.
        parameter_bytes, gradient_bytes, optimizer_bytes: of those same parameters.
        profile: the device.
        forward_fixed_us, backward_fixed_us: the part of these times that a smaller batch does not
            shorten.
        arithmetic_share, memory_share: how much of an operation's time is bound by arithmetic and
            by memory traffic, from 0 to 1; the rest is overhead.
        forward_flops, backward_flops: floating point operations.
        forward_bytes, backward_bytes: bytes read and written.
        gradient_tensors: how many parameters `gradient_bytes` are of.
        kind: which model they come from.
        share: of the traced batch that they are for.
        curve: how the whole model ran at shares of the batch; empty where that is not known.
        crowding: of the whole model, measured; None where the profile's classes decide.
        unmeasured: operations whose times are analytic although the others' were measured.
    """

    operations: tuple[str, ...]
    forward_us: tuple[float, ...]
    backward_us: tuple[float, ...]
    update_us: tuple[float, ...]
    activation_bytes: tuple[int, ...]
    parameter_bytes: tuple[int, ...]
    gradient_bytes: tuple[int, ...]
    optimizer_bytes: tuple[int, ...]
    profile: DeviceProfile
    forward_fixed_us: tuple[float, ...] = ()
    backward_fixed_us: tuple[float, ...] = ()
    arithmetic_share: tuple[float, ...] = ()
    memory_share: tuple[float, ...] = ()
    forward_flops: tuple[int, ...] = ()
    backward_flops: tuple[int, ...] = ()
    forward_bytes: tuple[int, ...] = ()
    backward_bytes: tuple[int, ...] = ()
    gradient_tensors: tuple[int, ...] = ()
    kind: Kind = "analytic"
    share: float = 1.0
    curve: tuple[SharePoint, ...] = ()
    crowding: Crowding | None = None
    unmeasured: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for names, zero in ((_OPTIONAL_TIMES, 0.0), (_OPTIONAL_COUNTS, 0)):
            for name in names:
                if not getattr(self, name):
                    object.__setattr__(self, name, (zero,) * len(self.operations))

    @property
    def total_us(self) -> tuple[float, ...]:
        """Microseconds of one training step of each operation: forward, backward, update."""
        parts = zip(self.forward_us, self.backward_us, self.update_us, strict=True)
        return tuple(map(sum, parts))

    @property
    def memory_bytes(self) -> tuple[int, ...]:
        """Bytes that training keeps for each operation."""
        columns = (
            self.activation_bytes,
            self.parameter_bytes,
            self.gradient_bytes,
            self.optimizer_bytes,
        )
        return tuple(map(sum, zip(*columns, strict=True)))

    def at(self, share: float) -> Costs:
        """Costs of one step on a share of the batch: 0.5 for two replicas, 1/m for a microbatch.

        Time is `fixed + (full - fixed) * share`; where the whole model was measured at several
        shares, corrected so that the sums are those (between two shares, straight in the
        logarithm of the share; beyond the last, like the last). Activations scale with the share,
        parameters and their update do not.

        Args:
            share: of the batch that these costs are for; more than 1 for a larger batch.

        Raises:
            DnicError: the share is not above 0.
        """
        if not 0 < share < float("inf"):
            raise DnicError(f"a share of {share} of a batch", expected="a number above 0")
        if share == 1:
            return self
        wanted = share * self.share
        forward = _corrected(self.curve, "forward", wanted, self.share)
        backward = _corrected(self.curve, "backward", wanted, self.share)
        return replace(
            self,
            forward_us=_affine(self.forward_us, self.forward_fixed_us, share, forward),
            backward_us=_affine(self.backward_us, self.backward_fixed_us, share, backward),
            forward_fixed_us=tuple(us * forward for us in self.forward_fixed_us),
            backward_fixed_us=tuple(us * backward for us in self.backward_fixed_us),
            activation_bytes=_scaled(self.activation_bytes, share),
            forward_flops=_scaled(self.forward_flops, share),
            backward_flops=_scaled(self.backward_flops, share),
            forward_bytes=_scaled(self.forward_bytes, share),
            backward_bytes=_scaled(self.backward_bytes, share),
            share=wanted,
        )

    def crowded(self) -> Costs:
        """Costs while every other core of the machine does the same.

        What was measured of the whole model, else each operation's mix of the profile's classes.
        An update counts as memory traffic.
        """
        classes = self.profile.crowded
        mixes = [
            classes.arithmetic * a + classes.memory * m + classes.overhead * (1 - a - m)
            for a, m in zip(self.arithmetic_share, self.memory_share, strict=True)
        ]
        update = classes.memory
        forward = backward = mixes
        if self.crowding is not None:
            count = len(self.operations)
            forward = [self.crowding.forward] * count
            backward = [self.crowding.backward] * count
            update = self.crowding.update
        return replace(
            self,
            forward_us=_times(self.forward_us, forward),
            backward_us=_times(self.backward_us, backward),
            forward_fixed_us=_times(self.forward_fixed_us, forward),
            backward_fixed_us=_times(self.backward_fixed_us, backward),
            update_us=tuple(us * update for us in self.update_us),
            profile=self.profile.model_copy(update={"crowded": Crowded()}),
            crowding=None,
        )

    def check(self, graph: Graph) -> None:
        """Check one entry for each operation of `graph`, all finite and none negative.

        Raises:
            DnicError: an entry is missing, negative or not a number; the costs are attached.
        """
        if self.operations != tuple(op.name for op in graph.operations):
            raise DnicError("the costs are not those of the graph's operations", where=str(self))
        for name, column in self._columns().items():
            if len(column) != len(self.operations):
                raise DnicError(
                    f"{name} has {len(column)} entries for {len(self.operations)} operations",
                    where=str(self.operations),
                )
            for op, entry in zip(self.operations, column, strict=True):
                if not 0 <= entry < float("inf"):
                    raise DnicError(f"{name} of {op} is {entry}", where=str(self))

    def _columns(self) -> dict[str, tuple[float, ...]]:
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name in _COLUMNS}

    def __str__(self) -> str:
        columns = self._columns()
        width = max((len(name) for name in self.operations), default=0)
        how = ", measured" if self.kind == "measured" else ""
        lines = [f"costs on {self.profile.name}{how}"]
        lines.append(" " * width + "".join(f"{name:>18}" for name in columns))
        for row in zip(self.operations, *columns.values(), strict=True):
            cells = (f"{v:>18.1f}" if isinstance(v, float) else f"{v:>18}" for v in row[1:])
            lines.append(f"{row[0]:<{width}}" + "".join(cells))
        if self.unmeasured:
            lines.append(f"not measured: {', '.join(self.unmeasured)}")
        return "\n".join(lines)


class CostModel(Protocol):
    """What costs a graph: analytic or measured."""

    def costs(
        self, graph: Graph, optimizer: str = "AdamW", options: Mapping[str, Any] | None = None
    ) -> Costs:
        """Costs of every operation.

        Args:
            graph: with FLOPs and bytes at the traced batch size.
            optimizer: name of a `torch.optim` class.
            options: its keyword arguments.
        """
        ...


def _affine(
    full: Sequence[float], fixed: Sequence[float], share: float, factor: float
) -> tuple[float, ...]:
    return tuple((f + (t - f) * share) * factor for t, f in zip(full, fixed, strict=True))


def _scaled(counts: Sequence[int], share: float) -> tuple[int, ...]:
    return tuple(round(count * share) for count in counts)


def _times(times: Sequence[float], factors: Sequence[float]) -> tuple[float, ...]:
    return tuple(t * f for t, f in zip(times, factors, strict=True))


def _corrected(
    curve: tuple[SharePoint, ...],
    phase: Literal["forward", "backward"],
    wanted: float,
    now: float,
) -> float:
    """The curve's factor at `wanted` over the one at the share `now`."""
    return _read(curve, phase, wanted) / _read(curve, phase, now) if curve else 1.0


def _read(
    curve: tuple[SharePoint, ...], phase: Literal["forward", "backward"], share: float
) -> float:
    points = sorted((point.share, float(getattr(point, phase))) for point in curve)
    shares = [at for at, _ in points]
    if share <= shares[0]:
        return points[0][1]
    if share >= shares[-1]:
        return points[-1][1]
    right = bisect_left(shares, share)
    (a, low), (b, high) = points[right - 1], points[right]
    weight = (log(share) - log(a)) / (log(b) - log(a))
    return exp((1 - weight) * log(low) + weight * log(high))
