"""The problem at its points: the start, every open gap, the end; columns of numbers to search on.

What a stage [i, j) costs and holds is a sum of something at j and something at i, so that the best
i for many j is a running maximum. Bytes are multiplied by the number of replicas instead of
divided, which keeps them whole numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray

from dnic.partition.exact.problem import Problem

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]

_US_PER_S = 1e6


class Terrain:
    """Columns over the points, for every class and number of replicas.

    Args:
        problem: what is to be cut.
        gaps: open gaps to consider, ascending, fixed ones among them.
        extra_bytes: added to the memory of every device that has a limit.
    """

    def __init__(self, problem: Problem, gaps: Sequence[int], extra_bytes: float = 0.0) -> None:
        n = len(problem.times_us)
        self.problem = problem
        self.extra_bytes = extra_bytes
        self.points: Integers = np.array((0, *gaps, n), dtype=np.int64)
        self.last = len(self.points) - 1
        self.times = self._prefix(problem.times_us)
        self.fixed_times = self._prefix(problem.fixed_us)
        # A stage of r replicas does at most speed times r of it in a time of 1.
        self.least_work = self.times + self.fixed_times
        self.parameters = self._prefix(problem.parameter_bytes)
        self.held = self._prefix(problem.parameter_memory)
        self.shared_out = self._prefix(problem.activation_memory)
        self.after_bytes = self._at(problem.after_bytes)
        self.message = self._at(problem.message_us)
        nbytes, back = self._at(problem.nbytes), self._at(problem.back_nbytes)
        self.busy_bytes = np.maximum(nbytes, back)
        self.both_bytes = nbytes + back
        self.before = [self._at(option.before_us) for option in problem.options]
        self.before_bytes = [self._at(option.before_bytes) for option in problem.options]
        self.units = [self._at(option.penalty_units).astype(np.int64) for option in problem.options]
        self.allowed = [self._allowed(option.allowed) for option in problem.options]
        # A stage that ends at a point starts no earlier than the last fixed gap before it.
        self.lowest = np.zeros(self.last + 1, dtype=np.int64)
        for point in np.searchsorted(self.points, sorted(problem.fixed)):
            self.lowest[point + 1 :] = point
        self.least_decoupled_units = self._least_decoupled_units()
        self.has_fixed = bool(problem.fixed)
        self.work = cache(self._work)
        self.spent = cache(self._spent)
        self.start_us = cache(self._start_us)
        self.end_us = cache(self._end_us)
        self.start_bytes = cache(self._start_bytes)
        self.end_bytes = cache(self._end_bytes)
        self.first_fitting = cache(self._first_fitting)
        self.busy_us = cache(self._busy_us)
        self.wait_us = cache(self._wait_us)

    def _prefix(self, entries: Sequence[float]) -> Floats:
        """Sums of all operations before each point."""
        n = len(self.problem.times_us)
        sums = np.concatenate(([0.0], np.cumsum(entries or np.zeros(n), dtype=np.float64)))
        return sums[self.points]

    def _at(self, entries: Sequence[float]) -> Floats:
        """Entries at the points; nothing at the two ends, where there is no cut."""
        if not entries:
            return np.zeros(self.last + 1)
        taken = np.array(entries, dtype=np.float64)[self.points]
        taken[[0, -1]] = 0.0
        return taken

    def _allowed(self, entries: Sequence[bool]) -> Booleans:
        if not entries:
            return np.ones(self.last + 1, dtype=bool)
        return np.array(entries, dtype=bool)[self.points]

    def _least_decoupled_units(self) -> int:
        """Penalty of every decoupled cut, at least."""
        columns = zip(self.problem.options, self.units, self.allowed, strict=True)
        return min(
            (
                int(units[1:-1][allowed[1:-1]].min())
                for option, units, allowed in columns
                if not option.locked and allowed[1:-1].any()
            ),
            default=0,
        )

    def _work(self, device: int, replicas: int) -> Floats:
        """Time of all operations before each point, us; never falls."""
        speed = self.problem.devices[device].speed
        work: Floats = self.times / (speed * replicas) + self.fixed_times / speed
        return work

    def _spent(self, device: int, replicas: int) -> Floats:
        """The same, with the all-reduce of their gradients."""
        per_byte = _entry(self.problem.reduce_us_per_byte, device)
        share = 2 * (replicas - 1) / replicas
        spent: Floats = self.work(device, replicas) + per_byte * share * self.parameters
        return spent

    def _start_us(self, device: int, replicas: int) -> Floats:
        """A stage from i to j takes `end_us[j] - start_us[i]`."""
        latency = _entry(self.problem.reduce_latency_us, device) * 2 * (replicas - 1)
        start: Floats = self.spent(device, replicas) - self.message / replicas - latency
        return start

    def _end_us(self, device: int, replicas: int, option: int) -> Floats:
        """See `start_us`; with the work that the option adds before the cut."""
        speed = self.problem.devices[device].speed
        before = self.before[option] / (speed * replicas)
        end: Floats = self.spent(device, replicas) + self.message / replicas + before
        return end

    def _start_bytes(self, replicas: int) -> Floats:
        """A stage from i to j fits where `start_bytes[i] >= end_bytes[j]`."""
        start: Floats = replicas * (self.held - self.after_bytes) + self.shared_out
        return start

    def _end_bytes(self, device: int, replicas: int, option: int) -> Floats:
        """See `start_bytes`; lower than any start where there is no limit."""
        limit = self.problem.devices[device].memory_bytes
        if limit is None:
            return np.full(self.last + 1, -np.inf)
        limit_bytes = limit + self.extra_bytes
        needed = self.held + self.before_bytes[option] - limit_bytes
        end: Floats = replicas * needed + self.shared_out
        return end

    def _first_fitting(self, device: int, replicas: int, option: int) -> Integers:
        """For each end the first start of a stage that could fit."""
        best = np.maximum.accumulate(self.start_bytes(replicas))
        return np.searchsorted(best, self.end_bytes(device, replicas, option))

    def _busy_us(self, device: int, other: int, replicas: int) -> Floats:
        """How long a decoupled cut at each point keeps the link of two stages busy.

        `replicas` are the fewer of the two stages.
        """
        bandwidth = _pair(self.problem.bandwidth, device, other, float("inf"))
        busy: Floats = self.busy_bytes / (replicas * bandwidth) * _US_PER_S
        return busy

    def _wait_us(self, device: int, other: int, replicas: int) -> Floats:
        """How long the two stages wait for a locked cut at each point."""
        bandwidth = _pair(self.problem.bandwidth, device, other, float("inf"))
        latency = _pair(self.problem.latency_us, device, other, 0.0)
        wait: Floats = 2 * latency + self.both_bytes / (replicas * bandwidth) * _US_PER_S
        return wait

    def bound_us(self) -> float:
        """No step takes as long."""
        problem = self.problem
        ends = [
            float(self.end_us(k, r, o)[-1] + self.end_us(k, r, o).max())
            + 2 * float(self.message.sum())
            + sum(float(before.sum()) for before in self.before) / problem.devices[k].speed
            + _entry(problem.reduce_latency_us, k) * 2 * r * (len(self.points))
            for k in range(len(problem.devices))
            for r in problem.replica_counts
            for o in range(len(problem.options))
        ]
        pairs = range(len(problem.devices))
        waits = sum(float(self.wait_us(a, b, 1).sum()) for a in pairs for b in pairs)
        return 1.0 + sum(ends) + waits


def _entry(row: Sequence[float], index: int) -> float:
    return row[index] if row else 0.0


def _pair(matrix: Sequence[Sequence[float]], a: int, b: int, otherwise: float) -> float:
    return matrix[a][b] if matrix else otherwise
