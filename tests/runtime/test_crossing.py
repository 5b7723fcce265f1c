"""Interfaces in each mode: sources, lateness along chains and skips, whose gradients come back."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dnic.runtime.crossing import Crossings, Returns, crossings, rounded
from dnic.runtime.links import Count
from dnic.runtime.plan import (
    Gradient,
    InterfacePlan,
    Mode,
    Plan,
    SamplePlan,
    StagePlan,
    TensorSpec,
    TrainPlan,
)

TENSORS = (
    TensorSpec("h", ("B", 4), "float32", True),
    TensorSpec("wide", ("B",), "float64", False),
    TensorSpec("mask", ("B",), "int64", False),
    TensorSpec("half", ("B",), "float16", True),
)


def plan_of(*rows: tuple[int, int, Gradient, int], **keys: Any) -> Plan:
    interfaces = tuple(
        InterfacePlan(f"cut{source}{to}", source, to, TENSORS, gradient, None, window, 5, **keys)
        for source, to, gradient, window in rows
    )
    stages = tuple(
        StagePlan(f"stage{i}", (), ()) for i in range(1 + max(row.to for row in interfaces))
    )
    train = TrainPlan(16, 1, 0, "SGD", {})
    return Plan("m", SamplePlan(), "file", train, None, stages, interfaces, (), "", {})


def warmed(rows: Any, steps: tuple[Any, ...]) -> Crossings:
    """As decoupled, with warm-ups of so many steps."""
    plan = plan_of(*rows)
    interfaces = tuple(
        replace(row, warmup_steps=number)
        for row, number in zip(plan.interfaces, steps, strict=True)
    )
    return crossings(replace(plan, interfaces=interfaces), "decoupled")


CHAIN = ((0, 1, "synthetic", 3), (1, 2, "stale", 2), (2, 3, "stale", 4))
SKIP = ((0, 1, "stale", 1), (1, 2, "stale", 2), (0, 2, "stale", 1))
LOCKED = ((0, 1, "exact", 1), (1, 2, "stale", 3), (2, 3, "synthetic", 2))


@pytest.mark.parametrize(
    ("rows", "mode", "late", "holds"),
    [
        (CHAIN, "decoupled", (0, 6, 4, 0), {(0, 1): 3, (1, 2): 2, (2, 3): 4}),
        (CHAIN, "stale", (9, 6, 4, 0), {(0, 1): 3, (1, 2): 2, (2, 3): 4}),
        (CHAIN, "exact", (0, 0, 0, 0), {(0, 1): 0, (1, 2): 0, (2, 3): 0}),
        (CHAIN, "oracle", (0, 0, 0, 0), {(0, 1): 3, (1, 2): 0, (2, 3): 0}),
        (SKIP, "decoupled", (3, 2, 0), {(0, 1): 1, (1, 2): 2, (0, 2): 3}),
        (LOCKED, "decoupled", (3, 3, 0, 0), {(0, 1): 0, (1, 2): 3, (2, 3): 2}),
        (LOCKED, "stale", (5, 5, 2, 0), {(0, 1): 0, (1, 2): 3, (2, 3): 2}),
    ],
)
def test_lateness_adds_up_and_holds_what_is_past(
    rows: Any, mode: Mode, late: tuple[int, ...], holds: dict[tuple[int, int], int]
) -> None:
    crossed = crossings(plan_of(*rows), mode)
    assert crossed.late == late
    assert {ends: crossed.hold(*ends) for ends in holds} == holds


def test_stages_that_only_follow_one_another_may_be_two_apart() -> None:
    crossed = crossings(plan_of((0, 2, "synthetic", 5)), "decoupled")
    assert (crossed.hold(0, 1), crossed.hold(0, 2)) == (2, 5)


def test_no_warm_up_before_a_stage_that_is_late() -> None:
    rows = crossings(plan_of(*CHAIN), "decoupled").interfaces
    assert [row.warmup_steps for row in rows] == [0, 5, 5]
    rows = crossings(
        plan_of((0, 1, "synthetic", 3), (0, 2, "stale", 2), (1, 2, "stale", 1)), "decoupled"
    )
    assert rows.interfaces[0].warmup_steps == 5, "stage 0 is later than stage 1"


@pytest.mark.parametrize(
    ("rows", "steps", "total", "in_time"),
    [
        (CHAIN, (0, 5, 5), 100, 5),
        (CHAIN, (9, 7, 5), 100, 5),
        (CHAIN, (9, "auto", 9), 100, 5),
        (CHAIN, ("auto",) * 3, 10_000, 200),
        (LOCKED, (0, 5, 0), 100, 5),
        (((0, 1, "synthetic", 1),), (5,), 100, 0),
    ],
)
def test_no_stage_is_late_before_the_first_has_warmed_up(
    rows: Any, steps: Any, total: int, in_time: int
) -> None:
    assert warmed(rows, steps).in_time(total) == in_time


@pytest.mark.parametrize("mode", ["decoupled", "stale", "exact", "oracle"])
def test_only_wide_floats_are_converted_and_only_where_stages_are_apart(mode: Mode) -> None:
    plan = plan_of((0, 1, "synthetic", 1), message_dtype="bfloat16", return_every=3)
    (row,) = crossings(plan, mode).interfaces
    apart = mode in ("decoupled", "stale")
    wide = "bfloat16" if apart else None
    assert [spec.message_dtype for spec in row.tensors] == [wide, wide, None, None]
    assert row.return_every == (3 if mode == "decoupled" else 1)
    plan = replace(plan, interfaces=(replace(plan.interfaces[0], message_dtype="float32"),))
    (row,) = crossings(plan, mode).interfaces
    assert row.tensors == TENSORS


def test_rounding() -> None:
    spec = replace(TENSORS[0], message_dtype="bfloat16")
    given_ = torch.tensor([1.0, 1 + 2**-9, -(2**-130)])
    assert rounded(given_, TENSORS[0]) is given_
    arrived = rounded(given_, spec)
    assert arrived.dtype == torch.float32
    assert arrived[:2].tolist() == [1.0, 1.0]


@given(
    every=st.integers(1, 5),
    warmup=st.integers(0, 12),
    first=st.integers(0, 20),
    messages=st.integers(0, 15),
)
def test_messages_that_come_back_are_counted_exactly(
    every: int, warmup: int, first: int, messages: int
) -> None:
    """Against going through the steps one by one, epochs of every length and begin."""
    returns = Returns(every, warmup)
    sent = Count(messages, 16, 5)
    sizes = [
        sent.size(place)
        for place, step in enumerate(range(first, first + messages))
        if step < warmup or step % every == 0
    ]
    count = returns.count(first, sent)
    assert [count.size(message) for message in range(count.messages)] == sizes


def test_between() -> None:
    crossed: Crossings = crossings(plan_of(*CHAIN), "decoupled")
    found = crossed.between(1, 2)
    assert found is not None and found.name == "cut12"
    assert crossed.between(0, 3) is None
