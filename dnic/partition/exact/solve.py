"""The whole solver: the optimum, the fewest stages near it, the best liked cuts.

1. The least objective of all.
2. Among the partitions within the tolerance of it, the fewest stages, unless their number is given.
3. No idle stage, if there is a partition of so many stages within the tolerance without one.
   (Step 2, and with it 3 and 4 but for the last move, is left out where replicas and classes make
   too many states.)
4. An exactly balanced cut often carries several tensors where one a few operations away carries
   one. So: the gaps up to the lowest rank of preference that is still enough for such a partition,
   the least objective with these, and from there each cut to the best liked gap that it can reach.
"""

from __future__ import annotations

import numpy as np

from dnic.errors import PartitionError
from dnic.partition.exact.checks import check_counts
from dnic.partition.exact.descent import Limits, descend
from dnic.partition.exact.explain import explain
from dnic.partition.exact.levels import Levels
from dnic.partition.exact.problem import Problem, Solution
from dnic.partition.exact.search import PRECISION, Candidate, Search
from dnic.partition.exact.states import any_order, can_count, orders_searched
from dnic.partition.exact.sweep import Bounds
from dnic.partition.exact.terrain import Integers

# To what share the objective is least among the best liked cuts, where anything within the
# tolerance would do.
_TIDY_PRECISION = 1e-3


def solve_exact(problem: Problem, *, reasons: bool = True) -> Solution:
    """Cut so that the objective is least, or at most the tolerance larger and tidier.

    Args:
        problem: what is to be cut.
        reasons: whether to look for what would fit where nothing does; takes several searches.

    Raises:
        PartitionError: no partition satisfies the constraints; says which one fails by how much.
        ValueError: columns of the wrong length, or numbers that make no sense.
    """
    check_counts(problem)
    return _Solver(problem, reasons=reasons).solution()


class _Solver:
    """One problem on its way to its solution."""

    def __init__(self, problem: Problem, *, reasons: bool) -> None:
        self.problem = problem
        self.search = Search(problem, stages=problem.stages)
        self.examined = 0
        best = self.search.optimum()
        self.examined += self.search.sweep.examined
        if best is None:
            raise explain(problem) if reasons else PartitionError("no partition fits")
        self.best = best
        self.limit = best.objective * (1 + problem.tolerance) * (1 + PRECISION)
        self.counting = isinstance(self.search.sweep, Levels) or can_count(
            problem, len(best.partition.placement)
        )

    def solution(self) -> Solution:
        """The tidiest that was found within the tolerance."""
        chosen = self._tidied()
        used = [0] * len(self.problem.devices)
        for device, replicas in chosen.partition.placement:
            used[device] += replicas
        return Solution(
            partition=chosen.partition,
            step_us=chosen.costs.step_us,
            penalty=chosen.costs.penalty,
            objective=chosen.objective,
            optimum=self.best.objective,
            optimum_us=self.best.costs.step_us,
            devices_used=tuple(used),
            exact=any_order(self.problem),
            searched=orders_searched(self.problem)
            + ("" if self.counting else ", the number of stages as it came"),
            examined=self.examined,
        )

    def _tidied(self) -> Candidate:
        if not self.counting:
            return self._descended(self.best, 0.0)
        known = self._with_fewest_stages()
        stages = len(known.partition.placement)
        idle_us = self.problem.idle_share * self.best.costs.step_us
        if min(known.costs.work_us) < idle_us * (1 - PRECISION):
            busy = self._within(self.problem.open_gaps, stages, idle_us)
            known, idle_us = (known, 0.0) if busy is None else (busy, idle_us)
        if stages == 1:
            one = self._search(None, 1).optimum(idle_us, known, _TIDY_PRECISION)
            return one or known
        ranks = _ranks(self.problem)
        gaps, known = self._best_liked(ranks, stages, idle_us, known)
        search = self._search(gaps, stages)
        optimum = search.optimum(idle_us, known, _TIDY_PRECISION)
        self.examined += search.sweep.examined
        return self._descended(optimum or known, idle_us)

    def _descended(self, start: Candidate, idle_us: float) -> Candidate:
        limits = Limits(self.limit, idle_us, self.problem.max_decoupled)
        terrain = self.search.terrain
        return descend(terrain, start, _ranks(self.problem)[terrain.points], limits)

    def _with_fewest_stages(self) -> Candidate:
        """Within the tolerance."""
        best = self.best
        most = len(best.partition.placement)
        if self.problem.stages is not None or most == 1:
            return best
        search = Search(self.problem, counted=True, most_stages=most)
        bounds = Bounds(search.longest_step(self.limit), search.units_within(self.limit))
        try:
            for stages in search.sweep.stage_counts(bounds):
                if stages < most:
                    fewer = search.within(self.limit, stages=stages)
                    if fewer is not None:
                        return fewer
        finally:
            self.examined += search.sweep.examined
        return best

    def _best_liked(
        self, ranks: Integers, stages: int, idle_us: float, known: Candidate
    ) -> tuple[tuple[int, ...], Candidate]:
        """The gaps up to the lowest rank that is enough, and a partition with them."""
        everything = self.problem.open_gaps
        fixed = set(self.problem.fixed)
        levels = sorted({int(ranks[gap]) for gap in everything} | {-1})

        def up_to(level: int) -> tuple[int, ...]:
            return tuple(g for g in everything if ranks[g] <= level or g in fixed)

        # What is known already sets the highest level that can be needed.
        own = max((int(ranks[gap]) for gap in known.partition.cuts if gap not in fixed), default=-1)
        low, high = 0, levels.index(own)
        while low < high:
            middle = (low + high) // 2
            found = self._within(up_to(levels[middle]), stages, idle_us)
            if found is None:
                low = middle + 1
            else:
                known = found
                cuts = found.partition.cuts
                own = max((int(ranks[gap]) for gap in cuts if gap not in fixed), default=-1)
                high = min(middle, levels.index(own))
        return up_to(levels[high]), known

    def _within(self, gaps: tuple[int, ...], stages: int, idle_us: float) -> Candidate | None:
        if len(gaps) < stages - 1:
            return None
        search = self._search(gaps, stages)
        found = search.within(self.limit, idle_us)
        self.examined += search.sweep.examined
        return found

    def _search(self, gaps: tuple[int, ...] | None, stages: int) -> Search:
        return Search(self.problem, gaps, stages=stages)


def _ranks(problem: Problem) -> Integers:
    """Of each gap, by its preference; the best liked have 0."""
    n = len(problem.times_us)
    preferences = problem.preferences or ((),) * (n + 1)
    order = {key: rank for rank, key in enumerate(sorted(set(preferences)))}
    return np.array([order[key] for key in preferences], dtype=np.int64)
