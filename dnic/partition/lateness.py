"""How late the stages of a plan are, by its interfaces."""

from __future__ import annotations

from collections.abc import Sequence

from dnic.partition.plan import PlannedInterface


def lateness(interfaces: Sequence[PlannedInterface], stages: int) -> list[int]:
    """Batches of each stage whose graphs and weights wait for a gradient that is late."""
    late = [0] * stages
    for stage in reversed(range(stages)):
        for row in interfaces:
            if row.source == stage and row.differentiable:
                window = row.window if row.gradient == "stale" else 0
                if not row.predicted:
                    late[stage] = max(late[stage], window + late[row.to])
    return late
