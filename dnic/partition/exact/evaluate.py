"""What a given partition costs and holds, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dnic.partition.exact.problem import Partition
from dnic.partition.exact.terrain import Terrain


@dataclass(frozen=True)
class Costs:
    """Of one partition.

    Attributes:
        stages_us: time of each stage.
        waits_us: for each cut, how long it is waited for; 0 where it is decoupled.
        busy_us: for each cut, how long it keeps its link busy; 0 where it is locked.
        joined: for each cut whether it is locked.
        work_us: time of the operations of each stage.
        units: penalty units of each cut.
        unit: what one of them adds to the factor on the step.
    """

    stages_us: tuple[float, ...]
    waits_us: tuple[float, ...]
    busy_us: tuple[float, ...]
    joined: tuple[bool, ...]
    work_us: tuple[float, ...]
    units: tuple[int, ...]
    unit: float

    @property
    def group_of(self) -> tuple[int, ...]:
        """For each stage the number of its locked group."""
        groups = [0]
        for joined in self.joined:
            groups.append(groups[-1] + (not joined))
        return tuple(groups)

    @property
    def groups_us(self) -> tuple[float, ...]:
        """Time of each locked group."""
        group_of = self.group_of
        times = [0.0] * (group_of[-1] + 1)
        for stage, time_us in enumerate(self.stages_us):
            times[group_of[stage]] += time_us
        for cut, wait_us in enumerate(self.waits_us):
            times[group_of[cut]] += wait_us
        return tuple(times)

    @property
    def step_us(self) -> float:
        """The slowest group or the busiest link."""
        return max(*self.groups_us, *self.busy_us, 0.0)

    @property
    def penalty(self) -> float:
        """Of all cuts."""
        return self.unit * sum(self.units)

    @property
    def objective(self) -> float:
        """What is minimised."""
        return self.step_us * (1 + self.penalty)


def costs_of(terrain: Terrain, partition: Partition) -> Costs:
    """Costs of a partition whose cuts are points of the terrain."""
    points = _points(terrain, partition)
    placement = partition.placement
    stages_us, work_us, waits_us, busy_us = [], [], [], []
    for stage, (device, replicas) in enumerate(placement):
        start, end = points[stage], points[stage + 1]
        option = partition.options[stage] if stage < len(partition.options) else 0
        end_us = terrain.end_us(device, replicas, option)[end]
        stages_us.append(float(end_us - terrain.start_us(device, replicas)[start]))
        work = terrain.work(device, replicas)
        work_us.append(float(work[end] - work[start]))
    joined = tuple(terrain.problem.options[option].locked for option in partition.options)
    for cut, point in enumerate(points[1:-1]):
        (device, replicas), (other, count) = placement[cut], placement[cut + 1]
        link = (device, other, min(replicas, count))
        waits_us.append(float(terrain.wait_us(*link)[point]) if joined[cut] else 0.0)
        busy_us.append(0.0 if joined[cut] else float(terrain.busy_us(*link)[point]))
    units = tuple(
        int(terrain.units[option][point])
        for option, point in zip(partition.options, points[1:-1], strict=True)
    )
    return Costs(
        tuple(stages_us),
        tuple(waits_us),
        tuple(busy_us),
        joined,
        tuple(work_us),
        units,
        terrain.problem.unit,
    )


def bytes_of(terrain: Terrain, partition: Partition) -> tuple[float, ...]:
    """Memory of one device of each stage."""
    points = _points(terrain, partition)
    held = []
    for stage, (_, replicas) in enumerate(partition.placement):
        start, end = points[stage], points[stage + 1]
        option = partition.options[stage] if stage < len(partition.options) else 0
        shared_out = float(terrain.shared_out[end] - terrain.shared_out[start]) / replicas
        own = terrain.held[end] - terrain.held[start] + terrain.after_bytes[start]
        held.append(float(own + terrain.before_bytes[option][end]) + shared_out)
    return tuple(held)


def _points(terrain: Terrain, partition: Partition) -> list[int]:
    cuts = np.searchsorted(terrain.points, partition.cuts)
    return [0, *(int(point) for point in cuts), terrain.last]
