"""The orders of pipelines as literal tables, and against torch's own."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from torch.distributed.pipelining import schedules

from dnic.errors import PartitionError
from dnic.runtime.order import AHEAD_OF_EACH, passes
from dnic.schedule.orders import (
    Pass,
    eager_order,
    fills_rounds,
    gpipe_order,
    in_flight,
    interleaved_order,
    one_f_one_b_order,
    zero_bubble_order,
)


def text(order: Sequence[Pass]) -> str:
    names = {"whole": "B", "input": "I", "weight": "W"}
    return " ".join(
        f"{'F' if step.forward else names[step.part]}{step.microbatch}" for step in order
    )


def test_gpipe() -> None:
    assert text(gpipe_order(1, 3, 3)) == "F0 F1 F2 B0 B1 B2"


@pytest.mark.parametrize(
    ("device", "order"),
    [
        (0, "F0 F1 F2 B0 F3 B1 F4 B2 B3 B4"),
        (1, "F0 F1 B0 F2 B1 F3 B2 F4 B3 B4"),
        (2, "F0 B0 F1 B1 F2 B2 F3 B3 F4 B4"),
    ],
)
def test_one_f_one_b(device: int, order: str) -> None:
    assert text(one_f_one_b_order(device, 3, 5)) == order


@pytest.mark.parametrize("microbatches", [1, 2, 5, 9])
def test_eager_is_the_engines_own(microbatches: int) -> None:
    for device in range(3):
        engines = passes(AHEAD_OF_EACH * (2 - device), microbatches)
        assert text(eager_order(device, 3, microbatches)) == " ".join(map(str, engines))


def test_fewer_microbatches_than_devices() -> None:
    assert text(one_f_one_b_order(0, 4, 2)) == "F0 F1 B0 B1"


PARTS = {"BACKWARD_INPUT": "input", "BACKWARD_WEIGHT": "weight"}


def torch_order(
    device: int,
    devices: int,
    microbatches: int,
    chunks: int,
    kind: type[schedules._PipelineScheduleRuntime] = schedules.ScheduleInterleaved1F1B,
) -> list[Pass]:
    """What torch calculates, without the steps in which a device only waits."""
    schedule = object.__new__(kind)
    schedule.pp_group_size = devices
    schedule.n_local_stages = chunks
    schedule._n_microbatches = microbatches
    schedule.microbatches_per_round = microbatches // max(1, microbatches // devices)
    actions = schedule._calculate_single_rank_operations(device)
    forward = schedules._ComputationType.FORWARD
    return [
        Pass(
            action.computation_type == forward,
            action.stage_index,
            action.microbatch_index,
            PARTS.get(action.computation_type.name, "whole"),  # type: ignore[arg-type]
        )
        for action in actions
        if action is not None
    ]


@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("rounds", [1, 2, 3])
def test_interleaved_is_torchs(devices: int, chunks: int, rounds: int) -> None:
    for device in range(devices):
        expected = torch_order(device, devices, rounds * devices, chunks)
        assert list(interleaved_order(device, devices, rounds * devices, chunks)) == expected


def test_interleaved_with_rounds_that_are_not_of_as_many_as_devices() -> None:
    assert list(interleaved_order(1, 4, 10, 2)) == torch_order(1, 4, 10, 2)
    assert list(interleaved_order(1, 4, 3, 2)) == torch_order(1, 4, 3, 2)
    with pytest.raises(PartitionError, match="9 microbatches over 4 devices"):
        interleaved_order(1, 4, 9, 2)


@pytest.mark.parametrize(
    ("device", "order"),
    [
        (0, "F0 F1 F2 I0 W0 F3 I1 W1 I2 W2 I3 W3"),
        (1, "F0 F1 I0 F2 I1 W0 F3 I2 W1 I3 W2 W3"),
        (2, "F0 I0 F1 I1 F2 I2 W0 F3 I3 W1 W2 W3"),
    ],
)
def test_zero_bubble(device: int, order: str) -> None:
    assert text(zero_bubble_order(device, 3, 4, 1)) == order


@pytest.mark.parametrize("devices", [2, 3, 4])
@pytest.mark.parametrize("chunks", [1, 2, 3])
@pytest.mark.parametrize("microbatches", [1, 2, 4, 6, 12])
def test_zero_bubble_is_torchs(devices: int, chunks: int, microbatches: int) -> None:
    kind = schedules.ScheduleInterleavedZeroBubble
    for device in range(devices):
        at = (device, devices, microbatches, chunks)
        assert list(zero_bubble_order(*at)) == torch_order(*at, kind)


def test_rounds_that_are_filled() -> None:
    assert [m for m in range(1, 13) if fills_rounds(m, 4)] == [4, 5, 6, 7, 8, 10, 12]


def test_batches_in_flight() -> None:
    assert [in_flight(zero_bubble_order(device, 4, 8, 1)) for device in range(4)] == [4] * 4
    for device in range(4):
        assert in_flight(gpipe_order(device, 4, 6)) == 6
        assert in_flight(one_f_one_b_order(device, 4, 6)) == 4 - device
        assert in_flight(one_f_one_b_order(device, 4, 2)) == min(2, 4 - device)
