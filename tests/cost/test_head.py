"""Heads and links: sizes by hand, and the width against its definition."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.cost import (
    DeviceProfile,
    Link,
    choose_width,
    features_and_positions,
    head_cost,
    load_profile,
    message_us,
    occupancy_us,
    stage_slack_us,
    transfer_us,
)
from dnic.graph.graph import Value

CPU = load_profile("cpu-core")


def value(*shape: int | str) -> Value:
    return Value("h", shape, "float32", 0, True)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("B", 64), (64, 10)),
        (("B", 7, 64), (64, 70)),
        (("B", 64, 5, 5), (64, 250)),
        (("7*B", 64), (64, 70)),
        (("B", 64, 2, 5, 5), (64, 500)),
        (("B",), (1, 10)),
        ((), (1, 1)),
    ],
)
def test_features_and_positions(shape: tuple[int | str, ...], expected: tuple[int, int]) -> None:
    assert features_and_positions(value(*shape), 10) == expected


@pytest.mark.parametrize(
    ("hidden_layers", "width", "classes", "parameters"),
    [
        (0, None, None, 64 * 64 + 64),
        (0, 8, None, (64 * 8 + 8) + (8 * 64 + 64)),
        (1, 8, None, (64 * 8 + 8) + (8 * 64 + 64)),
        (1, None, None, 2 * (64 * 64 + 64)),
        (3, 8, None, (64 * 8 + 8) + 2 * (8 * 8 + 8) + (8 * 64 + 64)),
        (1, 8, 10, (64 * 8 + 8) + (8 * 64 + 64) + 10 * 8),
        (0, None, 10, 64 * 64 + 64 + 10 * 64),
    ],
)
def test_parameters(
    hidden_layers: int, width: int | None, classes: int | None, parameters: int
) -> None:
    cost = head_cost([value("B", 64)], 10, hidden_layers, width, CPU, classes)
    assert cost.parameters == parameters


def test_times_of_one_linear_map_by_hand() -> None:
    """Arithmetic only: 2 * 10 * 64 * 64 FLOPs forward, three times that to train."""
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e6, "bytes_per_s": 1e30})
    cost = head_cost([value("B", 64)], 10, 0, None, device)
    assert cost.forward_us == pytest.approx(2 * 10 * 64 * 64)
    assert cost.train_us == pytest.approx(3 * 2 * 10 * 64 * 64)
    assert cost.total_us == cost.forward_us + cost.train_us


def test_each_tensor_has_a_head_of_its_own() -> None:
    one, other = value("B", 64), value("B", 16, 8, 8)
    both = head_cost([one, other], 10, 1, 8, CPU)
    apart = head_cost([one], 10, 1, 8, CPU) + head_cost([other], 10, 1, 8, CPU)
    assert both == apart
    assert both.parameters == 64 * 8 + 8 + 8 * 64 + 64 + 16 * 8 + 8 + 8 * 16 + 16


def width_for(slack_us: float, *shape: int | str, profile: DeviceProfile = CPU) -> int | None:
    return choose_width([value(*shape)], 256, 1, slack_us, profile)


def test_the_width_grows_with_the_slack_up_to_its_limits() -> None:
    widths = [width_for(slack, "B", 1024) for slack in (0, 1500, 3000, 6000, 12000, 1e9)]
    assert widths == sorted(w for w in widths if w)
    assert (widths[0], widths[-1]) == (8, 256)
    assert len(set(widths)) > 3
    assert width_for(1e9, "B", 100) == 64
    assert width_for(1e9, "B", 9) == 8
    assert width_for(1e9, "B", 8) is None
    assert width_for(1e9, "B") is None


def test_overhead_alone_narrows_nothing() -> None:
    slow_start = CPU.model_copy(update={"overhead_us": 1e6})
    assert width_for(3000, "B", 1024, profile=slow_start) == width_for(3000, "B", 1024)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(9, 2000),
    st.integers(1, 512),
    st.integers(0, 3),
    st.floats(0, 1e5),
    st.none() | st.integers(2, 1000),
)
def test_the_width_is_the_widest_that_fits(
    features: int, batch_size: int, hidden_layers: int, slack_us: float, classes: int | None
) -> None:
    free = CPU.model_copy(update={"overhead_us": 0.0})
    crossing = [value("B", features)]
    width = choose_width(crossing, batch_size, hidden_layers, slack_us, free, classes)

    def fits(candidate: int) -> bool:
        cost = head_cost(crossing, batch_size, hidden_layers, candidate, free, classes)
        return cost.total_us <= slack_us * (1 + 1e-9) + 1e-9

    allowed = [w for w in (8, 16, 32, 64, 128, 256) if w <= features and fits(w)]
    assert width == max(allowed, default=8)


def test_slack_is_a_share_or_what_is_idle() -> None:
    assert stage_slack_us(1000, 1000) == 50
    assert stage_slack_us(1000, 1020) == 50
    assert stage_slack_us(1000, 1400) == 400


def test_links() -> None:
    link = Link(bandwidth_bytes_per_s=1e6, latency_us=40)
    assert occupancy_us(500, link) == 500
    assert transfer_us(500, link) == 540
    assert transfer_us(0, link) == 40
    device = CPU.model_copy(update={"message_bytes_per_s": 1e6, "overhead_us": 3.0})
    assert message_us(500, device) == 503
    assert message_us(0, device) == 0
