"""The interfaces as a run in one mode has them, and how late that makes each stage.

A plan says what each interface is like when stages go on without one another; `--mode` may say
otherwise. Everything that follows from both is worked out here, once, so that the two ends of a
link, the engine and the reference agree without asking: the gradient's source, what tensors are on
the way, whose gradients come back, and by how many batches a stage's backward pass is behind its
forward pass.

A stage is late where it goes on with `stale` gradients, by the window; where the stage above is
late itself, its gradients are that much later, and lateness adds up along a chain. Stages joined by
`exact` interfaces are late together. Where several late gradients meet, the latest counts and the
others wait for it. A run begins in time, though: no stage is late before the first interface with
late gradients has warmed up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dnic.runtime.links import Count, dtype_named
from dnic.runtime.plan import (
    AWAITED,
    Gradient,
    HeadPlan,
    InterfacePlan,
    Mode,
    Plan,
    TensorSpec,
)
from dnic.runtime.registry import predictor_kind
from dnic.runtime.updates import EVERY_STEP, Updates, update_probability

WARMUP_MOST_STEPS = 200
WARMUP_SHARE = 0.05
# Of a run that a late interface begins with a predictor, which waits for nothing.
PREDICTED_SHARE = 0.5
# Stages that follow one another without an interface: only targets go from one to the next.
_FREE_WINDOW = 2
_WIDE = ("float32", "float64")
_APART: tuple[Mode, ...] = ("decoupled", "stale")


@dataclass(frozen=True)
class Crossings:
    """The interfaces of a plan in one mode.

    Attributes:
        interfaces: each with the gradient, the messages and the returns that it has in this mode.
        late: for each stage, batches by which its backward pass is behind its forward pass, once
            the run is `in_time` no more.
        foresees: for each stage, whether it goes forward with weights that it predicts.
    """

    interfaces: tuple[InterfacePlan, ...]
    late: tuple[int, ...]
    foresees: tuple[bool, ...]

    def between(self, source: int, to: int) -> InterfacePlan | None:
        """The interface from one stage to another, if they have one."""
        found = (row for row in self.interfaces if (row.source, row.to) == (source, to))
        return next(found, None)

    def in_time(self, total_steps: int) -> int:
        """Steps at the start of a run of so many in which no stage is late."""
        late = [row for row in self.interfaces if row.gradient == "stale" and row.differentiable]
        return min((warmup_steps(row, total_steps) for row in late), default=0)

    def hold(self, source: int, to: int) -> int:
        """Batches that may be past an interface, beside the one at hand."""
        interface = self.between(source, to)
        if interface is None:
            return _FREE_WINDOW
        behind = self.late[source] - self.late[to]
        return max(interface.window if interface.predicted else 0, behind)


@dataclass(frozen=True)
class Returns:
    """Whose true gradients come back over an interface: all while warming up, then every k-th.

    Attributes:
        every: k; batch t comes back where `t % k == 0`, t counting all batches of a run; 0: none.
        warmup: batches at the start of the run that all come back.
        updates: of the stage above; in other steps it has no gradient to send.
        first: the first step of which any come back.
    """

    every: int = 1
    warmup: int = 0
    updates: Updates = EVERY_STEP
    first: int = 0

    def __contains__(self, step: int) -> bool:
        returns = step < self.warmup or (self.every > 0 and step % self.every == 0)
        return step >= self.first and returns and step in self.updates

    def count(self, first: int, sent: Count) -> Count:
        """The messages that come back for those of a phase that begins with step `first`."""
        all_return = self.every == 1 and self.updates.probability >= 1 and first >= self.first
        if not sent.messages or all_return:
            return sent
        number = sum(step in self for step in range(first, first + sent.messages))
        last = first + sent.messages - 1
        return Count(
            number,
            sent.batch_size,
            sent.last_batch_size if last in self else sent.batch_size,
        )

    @classmethod
    def of(cls, interface: InterfacePlan, total_steps: int, seed: int) -> Returns:
        """Those of an interface in a run of so many steps, and with a seed."""
        updates = Updates(interface.update_probability, seed, interface.to)
        steps = warmup_steps(interface, total_steps)
        if interface.predicted_at_first:
            return cls(interface.return_every, 0, updates, first=steps)
        return cls(interface.return_every, steps, updates)


def crossings(plan: Plan, mode: Mode) -> Crossings:
    """The interfaces of a plan in a mode."""
    probability = update_probability(plan.train, mode)
    found = [_in_mode(interface, mode, probability) for interface in plan.interfaces]
    chains = _chains(found)
    found = [_guarded(row, 1 + chains.get(row.to, 0)) for row in found]
    late = _lateness(found, len(plan.stages))
    for index, row in enumerate(found):
        if row.predicted and late[row.to] > late[row.source]:
            # A true gradient that comes later than the backward pass cannot be awaited.
            found[index] = replace(_never_waiting(row), warmup_steps=0)
        elif row.return_every != 1 or probability < 1:
            found[index] = _never_waiting(row)
    return Crossings(tuple(found), late, _foresight(found, late))


def warmup_steps(plan: InterfacePlan, total_steps: int) -> int:
    """Steps for which an interface starts exact; `auto` is 5% of the run, at most 200.

    Where a predictor says that it does not warm up, `auto` is 0; where late gradients begin with a
    predictor it is half of the run.
    """
    if plan.warmup_steps != "auto":
        return plan.warmup_steps
    if plan.predicted_at_first:
        return int(PREDICTED_SHARE * total_steps)
    if plan.predicted and not predictor_kind(plan.gradient).warms_up:
        return 0
    return auto_warmup_steps(total_steps)


def auto_warmup_steps(total_steps: int) -> int:
    """What `auto` is in a run of so many steps, for what warms up."""
    return min(WARMUP_MOST_STEPS, int(WARMUP_SHARE * total_steps))


def rounded(tensor: Tensor, spec: TensorSpec) -> Tensor:
    """What arrives of a tensor after its way over a link."""
    if spec.message_dtype is None:
        return tensor
    return tensor.to(dtype_named(spec.message_dtype)).to(tensor.dtype)


def _never_waiting(interface: InterfacePlan) -> InterfacePlan:
    """An interface whose guard cannot have it wait: not every gradient is there to be awaited."""
    if interface.guard is None:
        return interface
    return replace(interface, guard=replace(interface.guard, fallback="none"))


def _in_mode(interface: InterfacePlan, mode: Mode, probability: float) -> InterfacePlan:
    gradient = _gradient(interface, mode)
    returned = _return_every(interface) if mode == "decoupled" else 1
    # Where no true gradient comes back there is nothing to judge a prediction by.
    guarded = mode == "decoupled" and gradient not in AWAITED and returned > 0
    # The other modes are what decoupling is compared with: they send what backpropagation has.
    apart = mode in _APART
    return replace(
        interface,
        gradient=gradient,
        tensors=tuple(
            _on_the_way(spec, interface.message_dtype) if apart else spec
            for spec in interface.tensors
        ),
        return_every=returned,
        predict_weights=interface.predict_weights and gradient == "stale",
        warmup=interface.warmup if gradient == "stale" else "exact",
        warmup_until=interface.warmup_until if guarded else None,
        guard=interface.guard if guarded else None,
        update_probability=probability,
    )


def _chains(interfaces: Sequence[InterfacePlan]) -> dict[int, int]:
    """For each stage, the most predictions of true gradients that its own is made of, if any."""
    chains: dict[int, int] = {}
    for row in sorted(interfaces, key=lambda row: row.source, reverse=True):
        learnt = row.predicted and predictor_kind(row.gradient).needs_gradients
        if learnt and row.differentiable:
            chains[row.source] = max(chains.get(row.source, 0), 1 + chains.get(row.to, 0))
    return chains


def _guarded(interface: InterfacePlan, chain: int) -> InterfacePlan:
    """With the shares that its guard asks for: as planned, or what the source asks for.

    A true gradient that comes back through other predictions is as wrong as they are, and the parts
    that they explain multiply. So in a chain of n each must explain the n-th root.
    """
    guard = interface.guard
    if guard is None:
        return interface
    kind, head = predictor_kind(interface.gradient), interface.head or HeadPlan()
    given = interface.differentiable
    least = kind.least_explained(head, given)
    least = least if least <= 0 else least ** (1 / chain)
    minimum, at_first = guard.shares(least, kind.least_at_first(head, given))
    return replace(interface, guard=replace(guard, minimum=minimum, at_first=at_first))


def _return_every(interface: InterfacePlan) -> int:
    """As planned; gradients that no predictor needs do not come back whatever a plan says."""
    if not interface.predicted or predictor_kind(interface.gradient).needs_gradients:
        return interface.return_every
    return 0


def _gradient(interface: InterfacePlan, mode: Mode) -> Gradient:
    if interface.gradient == "exact" or mode not in (*_APART, "oracle"):
        return "exact"
    if mode == "stale":
        return "stale"
    if mode == "oracle" and interface.gradient == "stale":
        return "exact"
    return interface.gradient


def _on_the_way(spec: TensorSpec, dtype: str) -> TensorSpec:
    if dtype == "float32" or spec.dtype not in _WIDE:
        return spec
    return replace(spec, message_dtype=dtype)


def _lateness(interfaces: Sequence[InterfacePlan], stages: int) -> tuple[int, ...]:
    late = [0] * stages
    for source in reversed(range(stages)):
        for row in interfaces:
            if row.source != source or not row.differentiable or row.predicted:
                continue
            window = row.window if row.gradient == "stale" else 0
            late[source] = max(late[source], window + late[row.to])
    return tuple(late)


def _foresight(interfaces: Sequence[InterfacePlan], late: tuple[int, ...]) -> tuple[bool, ...]:
    """Stages that are late by an interface that asks for it, and those that wait for them."""
    found = [False] * len(late)
    for source in reversed(range(len(late))):
        for row in interfaces:
            if row.source == source and row.differentiable and not row.predicted:
                found[source] |= row.predict_weights or found[row.to]
    return tuple(foresees and behind > 0 for foresees, behind in zip(found, late, strict=True))
