"""The order of a stage's passes: literal tables, and that no plan can wait in a circle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.runtime.edges import Pair, pairs
from dnic.runtime.links import Count
from dnic.runtime.options import Mode
from dnic.runtime.order import StageOrder, ahead, locked, most_ahead, passes
from dnic.runtime.plan import (
    GuardPlan,
    InterfacePlan,
    Plan,
    SamplePlan,
    StagePlan,
    TensorSpec,
    TrainPlan,
)

Edge = tuple[int, int]


def line(stage_ahead: int, microbatches: int) -> str:
    return " ".join(map(str, passes(stage_ahead, microbatches)))


@pytest.mark.parametrize(
    ("stage_ahead", "microbatches", "expected"),
    [
        (0, 1, "F0 B0"),
        (6, 1, "F0 B0"),
        (0, 4, "F0 B0 F1 B1 F2 B2 F3 B3"),
        (2, 2, "F0 F1 B0 B1"),
        (2, 3, "F0 F1 F2 B0 B1 B2"),
        (2, 5, "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4"),
        (4, 5, "F0 F1 F2 F3 F4 B0 B1 B2 B3 B4"),
        (6, 5, "F0 F1 F2 F3 F4 B0 B1 B2 B3 B4"),
    ],
)
def test_passes_of_a_step(stage_ahead: int, microbatches: int, expected: str) -> None:
    assert line(stage_ahead, microbatches) == expected


def interface(source: int, to: int, gradient: str = "exact", **keys: Any) -> InterfacePlan:
    spec = TensorSpec(f"t{source}{to}", ("B", 4), "float32", keys.pop("differentiable", True))
    keys = {"head": None, "window": 2, "warmup_steps": 0} | keys
    return InterfacePlan(f"cut{source}{to}", source, to, (spec,), gradient, **keys)  # type: ignore[arg-type]


def plan_of(stages: int, *interfaces: InterfacePlan) -> Plan:
    return Plan(
        model="drawn",
        samples=SamplePlan(),
        weights="file",
        train=TrainPlan(8, 1, 0, "SGD", {}),
        target=None,
        stages=tuple(StagePlan(f"stage{index}", (), ()) for index in range(stages)),
        interfaces=interfaces,
        shared=(),
        digest="",
        files={},
    )


CHAIN = [interface(0, 1), interface(1, 2), interface(2, 3)]


@pytest.mark.parametrize(
    ("interfaces", "mode", "expected"),
    [
        pytest.param(CHAIN, "decoupled", (6, 4, 2, 0), id="chain"),
        pytest.param(
            [interface(0, 1), interface(1, 2, "synthetic"), interface(2, 3)],
            "decoupled",
            (2, 0, 2, 0),
            id="two groups",
        ),
        pytest.param(
            [interface(0, 1), interface(1, 2, "synthetic"), interface(2, 3)],
            "exact",
            (6, 4, 2, 0),
            id="nothing is predicted",
        ),
        pytest.param(
            [interface(0, 3), interface(0, 1), interface(1, 3), interface(2, 3)],
            "decoupled",
            (4, 2, 2, 0),
            id="the longest way counts",
        ),
        pytest.param(
            [*CHAIN[:2], interface(2, 3, differentiable=False)],
            "decoupled",
            (4, 2, 0, 0),
            id="nothing comes back",
        ),
    ],
)
def test_how_far_ahead(
    interfaces: list[InterfacePlan], mode: Mode, expected: tuple[int, ...]
) -> None:
    assert ahead(plan_of(4, *interfaces), lambda row: locked(row, mode)) == expected


def test_while_heads_warm_up_their_stages_are_one_group() -> None:
    plan = plan_of(3, interface(0, 1, "synthetic", warmup_steps=2), interface(1, 2))
    order = StageOrder(plan, "decoupled", 0)
    order.begin(10)
    steps = [" ".join(map(str, order.passes(step, 3))) for step in (1, 2)]
    assert steps == ["F0 F1 F2 B0 B1 B2", "F0 B0 F1 B1 F2 B2"]
    assert most_ahead(plan, "decoupled") == (4, 2, 0)


def test_slots() -> None:
    plan = plan_of(
        4,
        interface(0, 1),
        interface(0, 3, differentiable=False),
        interface(1, 2, "synthetic", window=3),
        interface(2, 3),
    )

    def slots(microbatches: int) -> dict[tuple[int, int], tuple[int, int]]:
        found = pairs(plan, "decoupled", microbatches)
        return {(pair.source, pair.to): (pair.slots, pair.back) for pair in found}

    assert slots(1) == {(0, 1): (2, 2), (0, 3): (7, 2), (1, 2): (4, 4), (2, 3): (2, 2)}
    assert slots(8) == {
        (0, 1): (3, 8),
        (0, 3): (3 + 32 + 3 + 1, 8),
        (1, 2): (32, 32),
        (2, 3): (3, 8),
    }


@pytest.mark.parametrize(
    ("count", "most", "expected"),
    [
        (Count(7, 16, 4), 1, [16] * 6 + [4]),
        (Count(2, 16, 16), 4, [4] * 8),
        (Count(3, 16, 6), 4, [4] * 8 + [2] * 3),
        (Count(2, 16, 13), 4, [4] * 4 + [13]),
        (Count(1, 16, 15), 4, [5] * 3),
        (Count(0, 16, 16), 4, []),
    ],
)
def test_a_count_in_microbatches(count: Count, most: int, expected: list[int]) -> None:
    cut = count.cut(most)
    assert [cut.size(message) for message in range(cut.messages)] == expected
    assert cut.samples == count.samples == sum(expected)


@dataclass
class Wire:
    """One direction between two stages, as `links` has it."""

    slots: int
    posted: int
    sent: int = 0
    taken: int = 0
    always_posted: bool = True

    def may_send(self) -> bool:
        return self.sent - self.slots < self.posted

    def may_receive(self) -> bool:
        return self.taken < min(self.sent, self.posted)


@dataclass
class Run:
    """All stages of a plan, with the engine's order and the links' slots; no numbers."""

    plan: Plan
    mode: Mode
    microbatches: int
    steps: int
    there: dict[Edge, Wire] = field(default_factory=dict)
    back: dict[Edge, Wire] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pairs: list[Pair] = pairs(self.plan, self.mode, self.microbatches)
        self.rows = {(row.source, row.to): row for row in self.plan.interfaces}
        for pair in self.pairs:
            self.there[pair.source, pair.to] = Wire(pair.slots, pair.slots)
            if pair.differentiable:
                self.back[pair.source, pair.to] = Wire(pair.back, pair.back)

    def stage(self, index: int) -> Iterator[None]:
        """One process; it yields where it waits."""
        below = [(pair.source, pair.to) for pair in self.pairs if pair.to == index]
        above = [(pair.source, pair.to) for pair in self.pairs if pair.source == index]
        order = StageOrder(self.plan, self.mode, index)
        order.begin(self.steps)
        for step in range(self.steps):
            for one in order.passes(step, self.microbatches):
                yield from (self.forth if one.forward else self.home)(below, above, step)
            for edge in self.back.keys() & above:
                yield from self.due(edge, step)
        for edge in self.back.keys() & above:
            for step in range(self.steps, self.steps + self.rows[edge].window):
                yield from self.due(edge, step)

    def forth(self, below: list[Edge], above: list[Edge], step: int) -> Iterator[None]:
        """A forward pass."""
        for edge in below:
            yield from self.receive(self.there[edge])
        for edge in above:
            yield from self.send(self.there[edge])

    def home(self, below: list[Edge], above: list[Edge], step: int) -> Iterator[None]:
        """A backward pass."""
        for edge in above:
            if edge in self.back and self.waits(edge, step):
                yield from self.receive(self.back[edge])
        for edge in below:
            self.there[edge].posted += 1
            if edge in self.back:
                yield from self.send(self.back[edge])

    def waits(self, edge: Edge, step: int) -> bool:
        row = self.rows[edge]
        return locked(row, self.mode) or step < int(row.warmup_steps)

    def due(self, edge: Edge, step: int) -> Iterator[None]:
        """Takes what is due at a step, and frees the slots of what was taken."""
        row, wire = self.rows[edge], self.back[edge]
        late = 0 if self.waits(edge, step) else row.window
        if self.mode == "oracle" and row.gradient != "exact":
            late = 1  # Taken already, learnt one step later.
        if not 0 <= step - late < self.steps:
            return
        if not self.waits(edge, step):
            if self.waits(edge, step - late):
                return  # Taken and learnt while warming up.
            for _ in range(self.microbatches):
                yield from self.receive(wire)
        wire.posted += self.microbatches

    def send(self, wire: Wire) -> Iterator[None]:
        while not wire.may_send():
            yield
        wire.always_posted &= wire.sent < wire.posted
        wire.sent += 1

    def receive(self, wire: Wire) -> Iterator[None]:
        while not wire.may_receive():
            yield
        wire.taken += 1

    def ends(self, first: int) -> bool:
        """Whether all processes come to their end; `first` runs before the others each time."""
        waiting = {index: self.stage(index) for index in range(len(self.plan.stages))}
        while waiting:
            before = self.progress(), len(waiting)
            for index in sorted(waiting, key=lambda index: (index - first) % len(self.plan.stages)):
                if next(waiting[index], waiting) is waiting:
                    del waiting[index]
            if before == (self.progress(), len(waiting)):
                return False
        return True

    def progress(self) -> int:
        wires = (*self.there.values(), *self.back.values())
        return sum(wire.sent + wire.taken + wire.posted for wire in wires)


@dataclass
class GuardedRun(Run):
    """The same with interfaces that only their sources know to wait, in some steps."""

    guarded: dict[Edge, set[int]] = field(default_factory=dict)
    next: dict[Edge, int] = field(default_factory=dict)  # batch whose gradient is not taken yet

    def stage(self, index: int) -> Iterator[None]:
        below = [(pair.source, pair.to) for pair in self.pairs if pair.to == index]
        above = [(pair.source, pair.to) for pair in self.pairs if pair.source == index]
        order = StageOrder(self.plan, self.mode, index)
        order.begin(self.steps)
        for step in range(self.steps):
            awaited = [edge for edge in above if edge in self.back and self.waits(edge, step)]
            for edge in awaited:
                yield from self.take(edge, step - 1)
            names = [self.rows[edge].name for edge in awaited]
            for one in order.passes(step, self.microbatches, names):
                yield from (self.forth if one.forward else self.home)(below, above, step)
            for edge in self.back.keys() & above:
                if edge in awaited:
                    self.next[edge] = step + 1
                    self.back[edge].posted += self.microbatches
                else:
                    yield from self.take(edge, step - self.rows[edge].window)
        for edge in self.back.keys() & above:
            yield from self.take(edge, self.steps - 1)

    def waits(self, edge: Edge, step: int) -> bool:
        return super().waits(edge, step) or step in self.guarded.get(edge, ())

    def take(self, edge: Edge, last: int) -> Iterator[None]:
        """Takes and learns the gradients of all batches up to one."""
        while self.next.get(edge, 0) <= last:
            for _ in range(self.microbatches):
                yield from self.receive(self.back[edge])
            self.back[edge].posted += self.microbatches
            self.next[edge] = self.next.get(edge, 0) + 1


@st.composite
def plans(draw: st.DrawFn, guarded: bool = False) -> Plan:
    stages = draw(st.integers(2, 5))
    rows = []
    for source in range(stages):
        for to in range(source + 1, stages):
            if draw(st.booleans()):
                rows.append(
                    interface(
                        source,
                        to,
                        draw(st.sampled_from(["exact", "synthetic"])),
                        window=draw(st.integers(1, 3)),
                        warmup_steps=draw(st.sampled_from([0, 2])),
                        differentiable=draw(st.integers(0, 3)) > 0,
                        guard=GuardPlan() if guarded and draw(st.booleans()) else None,
                    )
                )
    return plan_of(stages, *rows)


@settings(max_examples=300, deadline=None)
@given(
    plans(),
    st.sampled_from(["decoupled", "exact", "oracle"]),
    st.integers(1, 7),
    st.integers(0, 4),
)
def test_no_plan_waits_in_a_circle(plan: Plan, mode: Mode, microbatches: int, first: int) -> None:
    run = Run(plan, mode, microbatches, steps=7)
    assert run.ends(first)
    for edge, wire in run.back.items():
        assert wire.sent == wire.taken == 7 * microbatches
        # Where a gradient comes back, every receive stands before its message is sent.
        assert wire.always_posted
        assert run.there[edge].always_posted


@settings(max_examples=300, deadline=None)
@given(plans(guarded=True), st.integers(1, 7), st.integers(0, 4), st.data())
def test_no_guard_makes_a_circle(
    plan: Plan, microbatches: int, first: int, data: st.DataObject
) -> None:
    """Whatever guards decide, and whenever: nobody but the interface's own source is told."""
    guarded = {
        (row.source, row.to): data.draw(st.sets(st.integers(0, 6)))
        for row in plan.interfaces
        if row.guard is not None and row.gradient == "synthetic"
    }
    run = GuardedRun(plan, "decoupled", microbatches, steps=7, guarded=guarded)
    assert run.ends(first)
    for edge, wire in run.back.items():
        assert wire.sent == wire.taken == 7 * microbatches
        assert wire.always_posted
        assert run.there[edge].always_posted


def test_a_stage_runs_ahead_as_far_as_guards_above_it_may() -> None:
    plan = plan_of(4, interface(0, 1), interface(1, 2, "synthetic", guard=GuardPlan()), CHAIN[2])

    def line_of(stage: int, *awaited: str) -> str:
        order = StageOrder(plan, "decoupled", stage)
        order.begin(10)
        return " ".join(map(str, order.passes(0, 7, awaited)))

    assert line_of(0) == "F0 F1 F2 F3 F4 F5 F6 B0 B1 B2 B3 B4 B5 B6"
    assert line_of(1) == "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4 F5 B5 F6 B6"
    assert line_of(1, "cut12") == "F0 F1 F2 F3 F4 B0 F5 B1 F6 B2 B3 B4 B5 B6"
    assert line_of(2) == "F0 F1 F2 B0 F3 B1 F4 B2 F5 B3 F6 B4 B5 B6"


@pytest.mark.parametrize("stages", [2, 3, 4, 6])
@pytest.mark.parametrize("microbatches", [1, 2, 3, 4, 8])
def test_a_chain_never_waits_for_a_slot(stages: int, microbatches: int) -> None:
    plan = plan_of(stages, *(interface(k, k + 1) for k in range(stages - 1)))
    run = Run(plan, "exact", microbatches, steps=3)
    assert run.ends(0)
    assert all(wire.always_posted for wire in (*run.there.values(), *run.back.values()))
