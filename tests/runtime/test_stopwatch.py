"""Parts of a step add up to it; waiting is a part of its own."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from dnic.runtime.stopwatch import WARMUP_STEPS, Lap, Stopwatch


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    yield now


def step(watch: Stopwatch, now: list[float], forward_s: float) -> None:
    now[0] += forward_s
    watch.lap("forward")
    now[0] += 2.0
    watch.lap("backward")
    now[0] += 0.5
    watch.tick()


def test_parts_add_up_to_the_mean_step(clock: list[float]) -> None:
    watch = Stopwatch()
    for forward_s in (1.0, 3.0):
        step(watch, clock, forward_s)
    parts = watch.parts_us()
    assert parts == pytest.approx({"forward": 2e6, "backward": 2e6, "rest": 0.5e6})
    figures = watch.step_us()
    assert figures is not None
    assert sum(parts.values()) == pytest.approx(figures["mean"])


@pytest.mark.parametrize(
    ("warming", "others"), [(1, 2), (2, 6), (WARMUP_STEPS, 16), (WARMUP_STEPS, 40)]
)
def test_the_first_steps_do_not_count_where_there_are_others(
    clock: list[float], warming: int, others: int
) -> None:
    watch = Stopwatch()
    for _ in range(warming):
        step(watch, clock, 100.0)
    for _ in range(others):
        step(watch, clock, 1.0)
    assert watch.parts_us()["forward"] == pytest.approx(1e6)
    figures = watch.step_us()
    assert figures is not None
    assert figures["mean"] == pytest.approx(3.5e6)


def test_waiting_is_taken_out_of_the_part_that_waited(clock: list[float]) -> None:
    waited = [7.0]
    watch = Stopwatch(lambda: waited[0], keep=1)
    clock[0] += 1.0
    waited[0] += 0.75
    watch.lap("receive")
    clock[0] += 1.0
    watch.tick()
    assert watch.parts_us() == pytest.approx({"receive": 0.25e6, "wait": 0.75e6, "rest": 1e6})
    assert watch.laps == [Lap("receive", 0.0, 1.0, 0.75), Lap("rest", 1.0, 2.0, 0.0)]


def test_nothing_is_known_before_the_first_step(clock: list[float]) -> None:
    watch = Stopwatch()
    assert watch.step_us() is None
    assert watch.parts_us() == {}
    assert watch.laps == []
