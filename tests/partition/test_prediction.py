"""The step-time rule against hand-computed cases and against a simulation of the engine."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.cost import Link
from dnic.partition.prediction import (
    Flow,
    limits_us,
    locked_groups,
    predict_step,
    smallest_window,
)

WIRE = Link(name="wire", bandwidth_bytes_per_s=1e6, latency_us=50.0)
FLOW = Flow("layers.2", 0, 1, nbytes=100, gradient_nbytes=100, link=WIRE, locked=False, window=2)


def test_the_slowest_stage_bounds_the_step() -> None:
    assert predict_step((1000.0, 1500.0), [FLOW]) == (1500.0, "stage1")


def test_a_slow_link_bounds_the_step() -> None:
    slow = replace(FLOW, nbytes=2000)
    assert predict_step((1000.0, 1500.0), [replace(slow, window=9)]) == (
        2000.0,
        "interface layers.2: transfer",
    )


def test_a_small_window_bounds_the_step() -> None:
    """(RTT 100 + 2 * transfer 100 + T_down 1500) / 1."""
    assert predict_step((1000.0, 1500.0), [replace(FLOW, window=1)]) == (
        1800.0,
        "interface layers.2: window",
    )


def test_a_locked_group_runs_one_after_the_other() -> None:
    locked = replace(FLOW, locked=True, window=1)
    assert predict_step((1000.0, 1500.0), [locked]) == (2800.0, "stage0 + stage1")
    other = replace(FLOW, name="b", source=1, to=2)
    assert locked_groups(3, [locked, other]) == [{0, 1}, {2}]
    assert predict_step((1000.0, 1500.0, 10.0), [locked, other])[0] == 2800.0


def test_without_interfaces_the_step_is_the_stage() -> None:
    assert predict_step((700.0,), []) == (700.0, "stage0")


@pytest.mark.parametrize(
    ("latency_us", "nbytes", "expected"),
    [(0.0, 0, 2), (50.0, 100, 2), (1000.0, 0, 3), (1000.5, 0, 4), (2000.0, 500, 6)],
)
def test_the_smallest_window_that_does_not_limit(
    latency_us: float, nbytes: int, expected: int
) -> None:
    link = Link(bandwidth_bytes_per_s=1e6, latency_us=latency_us)
    flow = Flow("a", 0, 1, nbytes, nbytes, link, locked=False)
    stage_us = (1000.0, 1000.0)
    window = smallest_window(flow, stage_us, [flow])
    assert window == expected
    assert predict_step(stage_us, [replace(flow, window=window)])[0] == 1000.0
    if window > 2:
        assert predict_step(stage_us, [replace(flow, window=window - 1)])[0] > 1000.0


def test_a_skipping_interface_waits_for_every_stage_on_its_way() -> None:
    skip = replace(FLOW, source=0, to=2, nbytes=0, gradient_nbytes=0, window=1)
    bounds = limits_us((10.0, 20.0, 30.0), [skip])
    assert bounds["interface layers.2: window"] == 100.0 + 20.0 + 30.0


def test_a_gradient_from_a_locked_group_waits_for_all_of_it() -> None:
    into = replace(FLOW, nbytes=0, gradient_nbytes=0, window=1)
    locked = replace(FLOW, name="b", source=1, to=2, locked=True, window=1)
    bounds = limits_us((10.0, 20.0, 30.0), [into, locked])
    assert bounds["interface layers.2: window"] == 100.0 + 20.0 + 30.0


def simulate(up_us: int, down_us: int, move_us: int, latency_us: int, window: int) -> float:
    """Mean step of two stages as the engine runs them: gradient t-window before step t."""
    steps = 400
    returned = [0.0] * steps
    up = down = wire = back = 0.0
    marks = []
    for t in range(steps):
        ready = returned[t - window] if t >= window else 0.0
        up = max(up, ready) + up_us
        wire = max(wire, up) + move_us
        down = max(down, wire + latency_us) + down_us
        back = max(back, down) + move_us
        returned[t] = back + latency_us
        marks.append(up)
    return (marks[-1] - marks[steps // 2]) / (steps - 1 - steps // 2)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(10, 500),
    st.integers(10, 500),
    st.integers(0, 300),
    st.integers(0, 1000),
    st.integers(1, 6),
)
def test_follows_a_simulated_engine(
    up_us: int, down_us: int, move_us: int, latency_us: int, window: int
) -> None:
    link = Link(bandwidth_bytes_per_s=1e6, latency_us=latency_us)
    flow = Flow("a", 0, 1, move_us, move_us, link, locked=False, window=window)
    predicted, _ = predict_step((up_us, down_us), [flow])
    simulated = simulate(up_us, down_us, move_us, latency_us, window)
    # The simulated engine sends at the end of its step; the real one sends after the forward part,
    # so that the measured rule counts nothing of T_up between a gradient and the next message.
    assert predicted <= simulated * 1.02
    assert simulated <= (predicted + up_us / window) * 1.02
