"""The `schedule` of a plan as a hand may have edited it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from dnic.errors import RuntimeFault
from dnic.runtime.plan import SchedulePlan
from dnic.runtime.scheduleplan import check_schedule, read_schedule

PLAN = Path("plan.yaml")


def test_what_is_left_out_is_decoupled_with_one_microbatch() -> None:
    assert read_schedule({}) == SchedulePlan("decoupled", None, 1, 1, shard=False)
    check_schedule(read_schedule({}), 2, PLAN)


@pytest.mark.parametrize(
    ("edited", "problem"),
    [
        ({"mode": "oracle"}, "mode 'oracle' is not known"),
        ({"microbatches": 0}, "must be 1 or more"),
        ({"processes": 0}, "must be 1 or more"),
        ({"replicas": 0}, "replicas 0 is too small"),
        ({"shard": "yes"}, "shard cannot be 'yes'"),
        ({"shard": True}, "there is one"),
        ({"mode": "backprop", "replicas": 2}, "has no replicas of stages"),
        ({"mode": "interleaved", "processes": 3}, "does not run on 3 processes"),
    ],
)
def test_a_mistake_names_the_section(edited: dict[str, Any], problem: str) -> None:
    with pytest.raises(RuntimeFault, match=problem) as found:
        check_schedule(read_schedule(edited), 4, PLAN)
    assert found.value.where == "plan.yaml: schedule"
