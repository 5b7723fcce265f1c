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
    gpipe_order,
    in_flight,
    interleaved_order,
    one_f_one_b_order,
)


def text(order: Sequence[Pass]) -> str:
    return " ".join(f"{'F' if step.forward else 'B'}{step.microbatch}" for step in order)


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


def torch_order(device: int, devices: int, microbatches: int, chunks: int) -> list[Pass]:
    """What torch calculates, without the steps in which a device only waits."""
    schedule = object.__new__(schedules.ScheduleInterleaved1F1B)
    schedule.pp_group_size = devices
    schedule.n_local_stages = chunks
    schedule._n_microbatches = microbatches
    schedule.microbatches_per_round = microbatches // max(1, microbatches // devices)
    actions = schedule._calculate_single_rank_operations(device)
    forward = schedules._ComputationType.FORWARD
    return [
        Pass(action.computation_type == forward, action.stage_index, action.microbatch_index)
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


def test_batches_in_flight() -> None:
    for device in range(4):
        assert in_flight(gpipe_order(device, 4, 6)) == 6
        assert in_flight(one_f_one_b_order(device, 4, 6)) == 4 - device
        assert in_flight(one_f_one_b_order(device, 4, 2)) == min(2, 4 - device)
