"""The least objective, by bisection over decisions that also end it: see `least_objective`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dnic.partition.exact.evaluate import Costs, costs_of
from dnic.partition.exact.levels import Levels
from dnic.partition.exact.problem import Partition, Problem
from dnic.partition.exact.states import state_graph
from dnic.partition.exact.sweep import Bounds, Found, Sweep
from dnic.partition.exact.terrain import Terrain

PRECISION = 1e-9
_FIRST_SLACK = 0.01
_STALLED = 3


@dataclass(frozen=True)
class Candidate:
    """A partition and its costs."""

    partition: Partition
    costs: Costs

    @property
    def objective(self) -> float:
        """What is minimised."""
        return self.costs.objective


class Search:
    """Decisions and optima over some of the gaps of a problem.

    Args:
        problem: what is to be cut.
        gaps: open gaps to consider, fixed ones among them; None for all.
        stages: exactly so many; None for any number.
        counted: whether states tell the number of stages though none is given.
        most_stages: no more than so many.
        extra_bytes: added to the memory of every device that has a limit.
    """

    def __init__(
        self,
        problem: Problem,
        gaps: Sequence[int] | None = None,
        *,
        stages: int | None = None,
        counted: bool = False,
        most_stages: int | None = None,
        extra_bytes: float = 0.0,
    ) -> None:
        self.problem = problem
        self.stages = stages
        most = problem.most_stages if most_stages is None else most_stages
        most = stages or most
        most_decoupled = problem.max_decoupled
        if most_decoupled is not None and not any(option.locked for option in problem.options):
            most, most_decoupled = min(most, most_decoupled + 1), None
        if most_decoupled is not None and most_decoupled >= most - 1:
            most_decoupled = None
        self.terrain = Terrain(problem, problem.open_gaps if gaps is None else gaps, extra_bytes)
        counted = counted or stages is not None or most < problem.device_count
        self.sweep: Sweep | Levels
        if _is_plain(self.terrain):
            self.sweep = Levels(self.terrain, most)
        else:
            graph = state_graph(problem, counted, most)
            self.sweep = Sweep(self.terrain, graph, most_decoupled)
        self.most_stages = most

    @cached_property
    def most_units(self) -> int:
        """No partition has a penalty of more, in multiples of the divisor."""
        most = max(int(column.max()) for column in self.sweep.units)
        return most * max(self.most_stages - 1, 0)

    @cached_property
    def least_us(self) -> float:
        """No step is shorter."""
        most = sum(one.speed * one.count for one in self.problem.devices)
        most = min(most, self._fastest * self.most_stages)
        return float(self.terrain.least_work[-1]) / most

    def any(self) -> Candidate | None:
        """Some partition, however slow; None where none satisfies the constraints."""
        bounds = Bounds(self.terrain.bound_us(), self.most_units, self.stages)
        return self._candidate(self.sweep.least_units(bounds))

    def within(
        self, limit: float, idle_us: float = 0.0, stages: int | None = None
    ) -> Candidate | None:
        """A partition whose objective is at most `limit`; None where there is none.

        Args:
            limit: the largest objective.
            idle_us: operations of no stage may take less.
            stages: exactly so many; None for the number that the search is for.

        The longest step that the limit leaves is asked for first; the least penalty at that step
        is a bound from below for shorter ones, which leaves a shorter step, and so on.
        """
        scale = self.problem.unit * self.sweep.divisor
        most = self.units_within(limit)
        step_us, units = self.longest_step(limit), -1
        while most >= 0 and step_us >= self.least_us * (1 - PRECISION):
            bounds = Bounds(step_us, most, stages or self.stages, idle_us)
            found = self.sweep.least_units(bounds)
            candidate = self._candidate(found)
            if found is None or candidate is None:
                return None
            if candidate.objective <= limit * (1 + PRECISION):
                return candidate
            if found.units <= units:  # Rounding, or it would have been within the limit.
                return None
            units = found.units
            step_us = min(step_us, limit / (1 + scale * units))
        return None

    def longest_step(self, limit: float) -> float:
        """No partition within a limit of the objective has a longer step.

        A locked group runs one stage at a time, so that a short step needs several groups, and as
        many decoupled cuts but one, each of which has a penalty.
        """
        scale = self.problem.unit
        work = float(self.terrain.least_work[-1])
        step_us, units = limit, 0
        while step_us > 0:
            groups = int(np.ceil(work / (step_us * self._fastest) * (1 - PRECISION)))
            least = max(groups - 1, 0) * self.terrain.least_decoupled_units
            if least <= units or scale <= 0 or step_us < self.least_us * (1 - PRECISION):
                break
            units = least
            step_us = limit / (1 + scale * units)
        return step_us

    @cached_property
    def _fastest(self) -> float:
        """Most work that one stage does in a time of 1."""
        most_replicas = max(self.problem.replica_counts)
        return max(one.speed for one in self.problem.devices) * most_replicas

    def units_within(self, limit: float) -> int:
        """No partition within a limit of the objective has more, in multiples of the divisor."""
        scale = self.problem.unit * self.sweep.divisor
        if scale <= 0 or self.least_us <= 0:
            return self.most_units
        most = (limit / self.least_us * (1 + PRECISION) - 1) / scale
        return int(min(most, self.most_units)) if most >= 0 else -1

    def optimum(
        self,
        idle_us: float = 0.0,
        known: Candidate | None = None,
        precision: float = 2 * PRECISION,
    ) -> Candidate | None:
        """The least objective; None where no partition satisfies anything.

        A partition that is found lowers the upper end to what it realises, which is often the
        optimum long before bisection would arrive there: where the upper end has not moved for
        some time, whether anything lies right below it is asked at once.

        Args:
            idle_us: operations of no stage may take less.
            known: some partition.
            precision: no objective is less by a larger share.
        """
        low = self.least_us * (1 - PRECISION)
        best = known
        slack = _FIRST_SLACK
        highest = self.terrain.bound_us() * (
            1 + self.problem.unit * self.sweep.divisor * self.most_units
        )
        while best is None:
            limit = min(low * (1 + slack) if low > 0 else slack, highest)
            best = self.within(limit, idle_us)
            if best is None:
                if limit >= highest:
                    return None
                low, slack = limit, slack * 4
        stalled = 0
        while (below := best.objective * (1 - precision)) > low:
            probe = stalled >= _STALLED
            limit = below if probe else min((low + best.objective) / 2, below)
            found = self.within(limit / (1 + PRECISION), idle_us)
            if found is None:
                low = limit
                stalled = stalled + 1
            else:
                best = found
                stalled = 0
        return best

    def _candidate(self, found: Found | None) -> Candidate | None:
        if found is None:
            return None
        return Candidate(found.partition, costs_of(self.terrain, found.partition))


def _is_plain(terrain: Terrain) -> bool:
    """Whether the fewest devices are all that counts for stages with replicas."""
    problem = terrain.problem
    return (
        len(problem.devices) == 1
        and problem.replica_counts != (1,)
        and not any(option.locked for option in problem.options)
        and not any(column.any() for column in terrain.units)
    )
