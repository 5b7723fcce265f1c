"""Moves one cut at a time to a better liked gap nearby, as long as everything still holds."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dnic.partition.exact.evaluate import Costs, costs_of
from dnic.partition.exact.problem import Partition
from dnic.partition.exact.search import PRECISION, Candidate
from dnic.partition.exact.terrain import Booleans, Floats, Integers, Terrain


@dataclass(frozen=True)
class Limits:
    """What a partition must keep to while its cuts move.

    Attributes:
        objective: the largest.
        idle_us: operations of no stage may take less.
        most_decoupled: as many decoupled cuts at most; None for no limit.
    """

    objective: float
    idle_us: float
    most_decoupled: int | None


def descend(terrain: Terrain, start: Candidate, ranks: Integers, limits: Limits) -> Candidate:
    """Moves cuts until none can move to a lower rank, or at the same to a lower objective.

    Each move lowers the ranks, or keeps them and lowers the objective, so that it ends.

    Args:
        terrain: of all gaps.
        start: within the limits.
        ranks: of each point; lower is better liked.
        limits: what to keep to.
    """
    best, moved = start, True
    while moved:
        moved = False
        for cut in range(len(best.partition.cuts)):
            better = _moved(terrain, best, cut, ranks, limits)
            if better is not None:
                best, moved = better, True
    return best


def _moved(
    terrain: Terrain, from_: Candidate, cut: int, ranks: Integers, limits: Limits
) -> Candidate | None:
    """With the cut at the lowest rank, and there at the lowest objective; None to stay."""
    partition = from_.partition
    here = int(np.searchsorted(terrain.points, partition.cuts[cut]))
    if partition.cuts[cut] in terrain.problem.fixed:
        return None
    best = (int(ranks[here]), from_.objective * (1 - PRECISION))
    place = None
    for option, one in enumerate(terrain.problem.options):
        changed = (*partition.options[:cut], option, *partition.options[cut + 1 :])
        decoupled = sum(not terrain.problem.options[index].locked for index in changed)
        if limits.most_decoupled is not None and decoupled > limits.most_decoupled:
            continue
        move = _Move(terrain, replace(partition, options=changed), cut, from_.costs, one.locked)
        objective = move.objective(limits)
        if not len(objective):
            continue
        order = np.lexsort((objective, ranks[move.gaps]))
        found = order[objective[order] <= limits.objective][:1]
        for index in found:
            merit = (int(ranks[move.gaps][index]), float(objective[index]))
            if merit < best:
                best, place = merit, (int(move.gaps.start + index), changed)
    if place is None:
        return None
    point, options = place
    cuts = (*partition.cuts[:cut], int(terrain.points[point]), *partition.cuts[cut + 1 :])
    result = Partition(cuts, options, partition.placement)
    return Candidate(result, costs_of(terrain, result))


class _Move:
    """All places of one cut between its neighbours, with one option; all others stay."""

    def __init__(
        self, terrain: Terrain, partition: Partition, cut: int, costs: Costs, locked: bool
    ) -> None:
        points = [0, *np.searchsorted(terrain.points, partition.cuts).tolist(), terrain.last]
        self.terrain = terrain
        self.partition = partition
        self.cut = cut
        self.costs = costs
        self.locked = locked
        self.low, self.high = points[cut], points[cut + 2]
        # A fixed gap between the neighbours would be this cut itself.
        self.gaps = slice(self.low + 1, self.high)
        self.left, self.right = partition.placement[cut], partition.placement[cut + 1]
        self.option = partition.options[cut]
        last = cut + 1 == len(partition.options)
        self.next_option = 0 if last else partition.options[cut + 1]

    def objective(self, limits: Limits) -> Floats:
        """At each gap; infinite where the cut may not be."""
        terrain, gaps = self.terrain, self.gaps
        left_us = terrain.end_us(*self.left, self.option)[gaps]
        left_us = left_us - terrain.start_us(*self.left)[self.low]
        right_us = terrain.end_us(*self.right, self.next_option)[self.high]
        right_us = right_us - terrain.start_us(*self.right)[gaps]
        (device, replicas), (other, count) = self.left, self.right
        link = (device, other, min(replicas, count))
        before, after, elsewhere = self._others()
        if self.locked:
            step_us = before + left_us + terrain.wait_us(*link)[gaps] + right_us + after
        else:
            step_us = np.maximum(before + left_us, right_us + after)
            step_us = np.maximum(step_us, terrain.busy_us(*link)[gaps])
        step_us = np.maximum(step_us, elsewhere)
        units = sum(self.costs.units) - self.costs.units[self.cut]
        penalty = self.costs.unit * (units + terrain.units[self.option][gaps])
        result: Floats = np.where(self._holds(limits.idle_us), step_us * (1 + penalty), np.inf)
        return result

    def _others(self) -> tuple[float, float, float]:
        """Time of what is locked to the stage before, to the stage after, and the longest else."""
        costs, cut = self.costs, self.cut
        before = after = 0.0
        first, last = cut, cut + 1
        while first > 0 and costs.joined[first - 1]:
            first -= 1
            before += costs.stages_us[first] + costs.waits_us[first]
        while last < len(costs.joined) and costs.joined[last]:
            after += costs.waits_us[last] + costs.stages_us[last + 1]
            last += 1
        group_of = costs.group_of
        own = {group_of[cut], group_of[cut + 1]}
        others = [t for group, t in enumerate(costs.groups_us) if group not in own]
        links = [t for at, t in enumerate(costs.busy_us) if at != cut]
        return before, after, max((*others, *links), default=0.0)

    def _holds(self, idle_us: float) -> Booleans:
        """Where memory and work are as they must be."""
        terrain, gaps = self.terrain, self.gaps
        allowed = terrain.allowed[self.option][gaps].copy()
        starts, ends = terrain.start_bytes(self.left[1]), terrain.end_bytes(*self.left, self.option)
        allowed &= starts[self.low] >= ends[gaps]
        starts = terrain.start_bytes(self.right[1])
        ends = terrain.end_bytes(*self.right, self.next_option)
        allowed &= starts[gaps] >= ends[self.high]
        least_us = idle_us * (1 - PRECISION)
        work = terrain.work(*self.left)
        allowed &= work[gaps] - work[self.low] >= least_us
        work = terrain.work(*self.right)
        allowed &= work[self.high] - work[gaps] >= least_us
        return allowed
