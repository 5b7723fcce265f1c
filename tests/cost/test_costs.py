"""Costs at a share of the batch and on a crowded machine, against hand-computed figures."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnic.cost import AnalyticModel, Costs, Crowded, Crowding, DeviceProfile, Link, SharePoint
from dnic.cost.measured import add_up
from dnic.cost.recompute import recomputed
from dnic.cost.whole import StepTimes
from dnic.errors import DnicError
from dnic.graph.graph import Graph, Operation, Value

DEVICE = DeviceProfile(
    name="d",
    flops_per_s=1e9,
    bytes_per_s=1e8,
    overhead_us=5,
    message_bytes_per_s=1e9,
    link=Link(bandwidth_bytes_per_s=1e9, latency_us=1),
)

COSTS = Costs(
    operations=("a", "b"),
    forward_us=(100.0, 10.0),
    backward_us=(200.0, 30.0),
    update_us=(7.0, 0.0),
    activation_bytes=(4000, 0),
    parameter_bytes=(40, 0),
    gradient_bytes=(40, 0),
    optimizer_bytes=(80, 0),
    profile=DEVICE,
    forward_fixed_us=(20.0, 10.0),
    backward_fixed_us=(0.0, 10.0),
    arithmetic_share=(0.5, 0.0),
    memory_share=(0.25, 0.0),
    forward_flops=(1000, 0),
    forward_bytes=(800, 8),
)


def test_a_share_of_the_batch() -> None:
    half = COSTS.at(0.5)
    assert half.forward_us == (60.0, 10.0)
    assert half.backward_us == (100.0, 20.0)
    assert half.update_us == COSTS.update_us
    assert half.forward_fixed_us == COSTS.forward_fixed_us
    assert (half.activation_bytes, half.parameter_bytes) == ((2000, 0), (40, 0))
    assert (half.forward_flops, half.forward_bytes) == ((500, 0), (400, 4))
    assert half.share == 0.5
    assert COSTS.at(1) is COSTS
    assert COSTS.at(2).forward_us == (180.0, 10.0)


@given(st.floats(0.01, 4), st.floats(0.01, 4))
def test_a_share_of_a_share(first: float, second: float) -> None:
    curve = (SharePoint(1, 1, 1), SharePoint(0.5, 1.5, 0.8), SharePoint(0.25, 2, 0.6))
    costs = replace(COSTS, curve=curve)
    twice, once = costs.at(first).at(second), costs.at(first * second)
    assert twice.forward_us == pytest.approx(once.forward_us)
    assert twice.backward_us == pytest.approx(once.backward_us)


def test_the_curve_is_met_where_it_was_measured() -> None:
    curve = (SharePoint(1, 1, 1), SharePoint(0.5, 1.5, 0.8), SharePoint(0.125, 3, 0.4))
    costs = replace(COSTS, curve=curve)
    assert costs.at(0.5).forward_us == (90.0, 15.0)
    assert costs.at(0.5).backward_us == (80.0, 16.0)
    # Halfway between 1/2 and 1/8 in the logarithm: the geometric mean of both factors.
    middle = (1.5 * 3) ** 0.5
    assert costs.at(0.25).forward_us == pytest.approx((40 * middle, 10 * middle))
    # Beyond the last as at the last.
    assert costs.at(0.01).forward_us == pytest.approx((3 * 20.8, 30))
    assert costs.at(2).forward_us == (180, 10)


@pytest.mark.parametrize("share", [0, -1, float("nan"), float("inf")])
def test_no_share(share: float) -> None:
    with pytest.raises(DnicError, match="a share of"):
        COSTS.at(share)


def test_recomputation_is_one_more_forward() -> None:
    costs = recomputed(COSTS)
    assert costs.forward_us == COSTS.forward_us
    assert costs.backward_us == (300.0, 40.0)
    assert costs.backward_fixed_us == (20.0, 20.0)
    assert costs.backward_flops == (1000, 0)
    assert costs.memory_bytes == COSTS.memory_bytes


def test_a_crowded_machine_by_class() -> None:
    profile = DEVICE.model_copy(
        update={"crowded": Crowded(arithmetic=1.2, memory=2.0, overhead=1.5)}
    )
    crowded = replace(COSTS, profile=profile).crowded()
    # Half arithmetic, a quarter memory, a quarter overhead; then overhead alone.
    mix = 0.5 * 1.2 + 0.25 * 2 + 0.25 * 1.5
    assert crowded.forward_us == pytest.approx((100 * mix, 15))
    assert crowded.backward_us == pytest.approx((200 * mix, 45))
    assert crowded.forward_fixed_us == pytest.approx((20 * mix, 15))
    assert crowded.update_us == (14, 0)
    assert crowded.crowded() == crowded, "it is crowded once"
    assert COSTS.crowded().total_us == COSTS.total_us


def test_a_crowded_machine_as_measured() -> None:
    crowded = replace(COSTS, crowding=Crowding(1.1, 1.2, 1.5)).crowded()
    assert crowded.forward_us == pytest.approx((110, 11))
    assert crowded.backward_us == pytest.approx((240, 36))
    assert crowded.update_us == (10.5, 0)


def test_operations_add_up_to_whole_steps() -> None:
    steps = [
        StepTimes(1.0, 220.0, 115.0, 14.0),
        StepTimes(0.5, 280.0, 40.0, 14.0),
        StepTimes(0.125, 100.0, 40.0, 14.0),
    ]
    costs = add_up(COSTS, steps, Crowding(1, 1, 1))
    assert costs.forward_us == (200, 20)
    assert costs.backward_us == (100, 15)
    assert costs.update_us == (14, 0)
    for step in steps:
        assert sum(costs.at(step.share).forward_us) == pytest.approx(step.forward_us)
        assert sum(costs.at(step.share).backward_us) == pytest.approx(step.backward_us)
    assert costs.crowding == Crowding(1, 1, 1)
    assert add_up(COSTS, [], None) == COSTS


def test_the_loss_stands_at_the_end() -> None:
    steps = [
        StepTimes(1.0, 120.0, 220.0, 7.0, 20.0, 20.0),
        StepTimes(0.5, 70.0, 110.0, 7.0, 12.0, 10.0),
    ]
    costs = add_up(COSTS, steps, None, has_loss=True)
    assert costs.forward_us == (100.0, 20.0)
    assert costs.backward_us == (200.0, 20.0)
    # 12 at half of the batch, 20 at all of it: 4 at none.
    assert costs.forward_fixed_us[1] == pytest.approx(4)
    assert sum(costs.at(0.5).forward_us) == pytest.approx(70)


def value(name: str) -> Value:
    return Value(name, ("B", 10), "float32", 400, True)


def linear(flops: int, moved: int) -> Graph:
    return Graph(
        "Net",
        10,
        (
            Operation("x", "input", "x", value=value("x")),
            Operation(
                "a",
                "module",
                "a",
                module_class="Linear",
                inputs=("x",),
                value=value("a"),
                parameters=("w",),
                parameter_bytes=400,
                forward_flops=flops,
                bytes_moved=moved,
            ),
        ),
    )


def test_efficiency_holds_for_its_class() -> None:
    efficiency = {"matmul": 0.5, "conv": 0.1, "attention": 0.1}
    profile = DeviceProfile.model_validate({**DEVICE.model_dump(), "efficiency": efficiency})
    costs = AnalyticModel(profile).costs(linear(20_000, 100), "SGD")
    assert (costs.forward_us[1], costs.backward_us[1]) == (45, 85)
    assert (costs.forward_flops[1], costs.backward_flops[1]) == (20_000, 40_000)
    assert (costs.forward_bytes[1], costs.backward_bytes[1]) == (100, 200)
    # 40 + 80 us of arithmetic, twice 5 of overhead.
    assert costs.arithmetic_share[1] == pytest.approx(120 / 130)
    assert costs.memory_share[1] == 0
    assert costs.forward_fixed_us[1] == 5


def test_reading_weights_does_not_shrink_with_the_batch() -> None:
    costs = AnalyticModel(DEVICE).costs(linear(0, 1000), "SGD")
    assert (costs.forward_us[1], costs.forward_fixed_us[1]) == (15, 9)
    assert costs.at(0.5).forward_us[1] == 12
    assert costs.memory_share[1] == pytest.approx(30 / 40)


def test_all_reduce() -> None:
    profile = DEVICE.model_copy(update={"reduce_bytes_per_s": 1e6, "reduce_latency_us": 10.0})
    assert profile.reduce_us(1000, 2) == 20 + 1000
    assert profile.reduce_us(1000, 4) == 60 + 1500
    assert profile.reduce_us(1000, 1) == 0
    assert DEVICE.reduce_us(1000, 2) == 2 + 1
