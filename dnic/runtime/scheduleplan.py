"""The `schedule` section of a plan, read and checked: how the processes of a run work together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from dnic.errors import RuntimeFault
from dnic.runtime.chunks import LOOPED, fitting_processes
from dnic.runtime.plan import UNREPLICATED, Mode, SchedulePlan

PLANNED_MODES = tuple(mode for mode in get_args(Mode) if mode not in ("oracle", "alone"))


def read_schedule(content: Mapping[str, Any]) -> SchedulePlan:
    """The section as a frozen value.

    Raises:
        TypeError, ValueError: a value has the wrong type.
    """
    processes = content.get("processes")
    return SchedulePlan(
        mode=content.get("mode", "decoupled"),
        processes=None if processes is None else int(processes),
        microbatches=int(content.get("microbatches", 1)),
        replicas=int(content.get("replicas", 1)),
        shard=content.get("shard", False),
    )


def check_schedule(schedule: SchedulePlan, stages: int, path: Path) -> None:
    """Checks what a hand edit can break.

    Args:
        schedule: as read.
        stages: how many there are.
        path: of the plan.

    Raises:
        RuntimeFault: names the key and the values that it may take.
    """
    if schedule.mode not in PLANNED_MODES:
        raise RuntimeFault(
            f"mode {schedule.mode!r} is not known",
            where=f"{path}: schedule",
            expected=", ".join(PLANNED_MODES),
        )
    if schedule.microbatches < 1 or (schedule.processes is not None and schedule.processes < 1):
        raise RuntimeFault(
            "processes and microbatches must be 1 or more", where=f"{path}: schedule"
        )
    _check_replicas(schedule, f"{path}: schedule")
    fitting = fitting_processes(schedule.mode, stages)
    if schedule.mode in LOOPED and schedule.processes not in (None, *fitting):
        raise RuntimeFault(
            f"{schedule.mode} over {stages} stages does not run on {schedule.processes} processes",
            where=f"{path}: schedule",
            expected=", ".join(map(str, fitting)) or "another mode",
        )


def _check_replicas(schedule: SchedulePlan, where: str) -> None:
    if schedule.replicas < 1:
        raise RuntimeFault(
            f"replicas {schedule.replicas} is too small", where=where, expected="1 or more"
        )
    if not isinstance(schedule.shard, bool):
        raise RuntimeFault(
            f"shard cannot be {schedule.shard!r}", where=where, expected="true or false"
        )
    if schedule.replicas > 1 and schedule.mode in UNREPLICATED:
        raise RuntimeFault(
            f"mode {schedule.mode} has no replicas of stages",
            where=where,
            expected="replicas: 1; or a mode of stages: decoupled, exact, stale",
        )
    if schedule.shard and schedule.replicas == 1:
        raise RuntimeFault(
            "shard divides a stage among its replicas, and there is one",
            where=where,
            expected="shard: false, or replicas: 2 or more",
        )
