"""Parts of a batch, sums of stages, and values that make no sense."""

from __future__ import annotations

from typing import Any

import pytest

from dnic.errors import PartitionError
from dnic.schedule import CutWork, Machine, StageWork, joined, one_device


def test_a_part_of_the_batch_takes_its_share_and_the_fixed_part() -> None:
    stage = StageWork(100, 200, 20, 40)
    assert (stage.forward_at(1), stage.forward_at(0.25)) == (100, 40)
    assert (stage.backward_at(1), stage.backward_at(0.25)) == (200, 80)
    one = CutWork(1000, 500, message_us=10, message_fixed_us=4, back_message_us=2)
    assert (one.message_at(1), one.message_at(0.5)) == (10, 7)
    assert one.back_message_at(0.5) == 2  # All of it is fixed.
    assert CutWork(1, 1, message_us=10).back_message_at(0.5) == 5


def test_joined_stages_add_up() -> None:
    whole = joined([StageWork(1, 2, 3, 4, 5, 6, 7, 8, 9, 10, replicas=3)] * 2)
    assert whole == StageWork(2, 4, 6, 8, 10, 12, 14, 16, 18, 20)
    assert whole.state_bytes == 14 + 16 + 18


def test_a_message_costs_overhead_and_bytes() -> None:
    assert Machine(overhead_us=3, message_bytes_per_s=2e6).message_us(10) == 8


def test_work_of_nothing_takes_no_time() -> None:
    done = one_device(StageWork(0, 0))
    assert (done.step_us, done.samples_per_s, done.bubble) == (0, float("inf"), 1)


@pytest.mark.parametrize(
    ("kind", "arguments", "problem"),
    [
        (StageWork, {"forward_us": -1.0, "backward_us": 1.0}, "forward_us is -1"),
        (StageWork, {"forward_us": 1.0, "backward_us": float("nan")}, "backward_us is nan"),
        (StageWork, {"forward_us": 1.0, "backward_us": float("inf")}, "backward_us is inf"),
        (StageWork, {"forward_us": 1.0, "backward_us": 1.0, "replicas": 0}, "0 replicas"),
        (CutWork, {"nbytes": -1, "back_nbytes": 0}, "nbytes is -1"),
        (CutWork, {"nbytes": 1, "back_nbytes": 1, "window": 0}, "a window of 0"),
        (CutWork, {"nbytes": 1, "back_nbytes": 1, "learns_every": 0}, "learns every 0 steps"),
        (Machine, {"overlap": 1.5}, "an overlap of 1.5"),
    ],
)
def test_values_that_make_no_sense(kind: Any, arguments: dict[str, Any], problem: str) -> None:
    with pytest.raises(PartitionError, match=problem):
        kind(**arguments)
