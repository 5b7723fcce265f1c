"""Decisions for one class of devices, only decoupled cuts and no penalties: fewest devices.

Then nothing is owed at the start of a stage, and of two ways to the same gap with as many stages
the one on fewer devices is as good. So one number is kept for each gap and number of stages, the
fewest devices, instead of one for each number of devices too: hundreds of devices with replicas
become a few stages. Which starts a stage of r replicas may have for an end does not depend on what
came before: it is a range, but for few exceptions close to its lower end.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dnic.partition.exact.problem import Partition
from dnic.partition.exact.reach import rules_for
from dnic.partition.exact.sweep import Bounds, Found
from dnic.partition.exact.terrain import Booleans, Floats, Integers, Terrain

_MOST_PAIRS = 4_000_000
_NONE = np.int64(2**40)


class Levels:
    """Decisions over one terrain, see `Sweep`.

    Args:
        terrain: the columns, of a problem with one class.
        most_stages: no more than so many.

    Attributes:
        divisor: of penalties, of which there are none.
        examined: pairs of a number of stages and an end that were looked at so far.
    """

    divisor = 1

    def __init__(self, terrain: Terrain, most_stages: int) -> None:
        self.terrain = terrain
        self.units = terrain.units
        self.most_stages = most_stages
        self.examined = 0

    def least_units(self, bounds: Bounds) -> Found | None:
        """A partition within the bounds, of the fewest stages; None where there is none."""
        run = _Run(self, bounds)
        stages = run.fewest_stages()
        return None if stages is None else Found(run.partition(stages), 0)

    def stage_counts(self, bounds: Bounds) -> Iterator[int]:
        """The fewest stages that there may be within the bounds, or nothing."""
        stages = _Run(self, bounds).fewest_stages()
        if stages is not None:
            yield stages


class _Run:
    """One decision."""

    def __init__(self, levels: Levels, bounds: Bounds) -> None:
        self.levels = levels
        self.bounds = bounds
        self.terrain = terrain = levels.terrain
        problem = terrain.problem
        self.devices = problem.devices[0].count
        self.ways = [
            _Way(terrain, bounds, replicas, option)
            for replicas in problem.replica_counts
            for option in range(len(problem.options))
        ]
        start = np.full(terrain.last + 1, _NONE)
        start[0] = 0
        self.fewest = [start]

    def fewest_stages(self) -> int | None:
        """That reach the end on the devices that there are; None where no number does."""
        most = self.bounds.stages or self.levels.most_stages
        for stages in range(1, most + 1):
            table = _table(self.fewest[-1])
            reached = np.full(self.terrain.last + 1, _NONE)
            for way in self.ways:
                way.extend(reached, self.fewest[-1], table)
            reached[reached > self.devices] = _NONE
            self.levels.examined += len(self.ways) * len(reached)
            end = reached[-1]
            reached[-1] = _NONE  # No stage starts there.
            self.fewest.append(reached)
            if end < _NONE and self.bounds.stages in (None, stages):
                return stages
            if reached.min() == _NONE:
                return None
        return None

    def partition(self, stages: int) -> Partition:
        """Back from the end."""
        end, left = self.terrain.last, self.devices
        cuts, options, placement = [], [], []
        for level in range(stages - 1, -1, -1):
            start, way, left = self._before(level, end, left)
            placement.append((0, way.replicas))
            if end < self.terrain.last:
                options.append(way.option)
                cuts.append(int(self.terrain.points[end]))
            end = start
        return Partition(tuple(cuts[::-1]), tuple(options[::-1]), tuple(placement[::-1]))

    def _before(self, level: int, end: int, devices: int) -> tuple[int, _Way, int]:
        """Start of a stage, its way, and devices that are left for those before it."""
        for way in self.ways:
            starts = way.starts(end)
            used = self.fewest[level][starts]
            if len(used) and used.min() + way.replicas <= devices:
                # The latest of those that are good enough makes the shortest stage.
                chosen = np.flatnonzero(used + way.replicas <= devices)[-1]
                return int(starts[chosen]), way, devices - way.replicas
        raise AssertionError("a point that was reached has a way to it")


class _Way:
    """Stages of so many replicas that end in cuts of one option: which starts an end may have."""

    def __init__(self, terrain: Terrain, bounds: Bounds, replicas: int, option: int) -> None:
        self.replicas = replicas
        self.option = option
        self.rules = rules = rules_for(terrain, (0, replicas, option), bounds.least_us)
        free = terrain.busy_us(0, 0, replicas) <= bounds.step_us
        self.keys = np.where(free, terrain.start_us(0, replicas), -np.inf)
        self.closed = None if free.all() else ~free
        self.needed = terrain.end_us(0, replicas, option) - bounds.step_us
        self.open = terrain.allowed[option] & free
        self.open[[0, -1]] = False, option == 0
        points = np.arange(terrain.last + 1)
        first = np.searchsorted(np.maximum.accumulate(self.keys), self.needed)
        low = np.maximum(np.maximum(rules.lowest, rules.first_fitting), first)
        # From here on all starts will do; those that the link closes are left out elsewhere.
        keys = np.where(free, self.keys, np.inf)
        sure = np.searchsorted(_lowest_from(keys), self.needed)
        fits = np.searchsorted(_lowest_from(rules.start_bytes), rules.end_bytes)
        sure = np.maximum(np.maximum(sure, fits), low)
        self.low = low
        ranged = np.flatnonzero(self.open & (sure < rules.behind))
        length = rules.behind[ranged] - sure[ranged]
        level = np.frexp(length)[1].astype(np.int64) - 1
        self.ranged = ranged
        self.left = level * len(points) + sure[ranged]
        self.right = level * len(points) + rules.behind[ranged] - (1 << level)
        self._find_exceptions(np.minimum(sure, rules.behind))

    def _find_exceptions(self, stop: Integers) -> None:
        """Single starts below `stop` that will do."""
        ends = np.flatnonzero(self.open & (self.low < stop))
        found_starts, found_ends = [_EMPTY], [_EMPTY]
        for some in _portions(ends, stop[ends] - self.low[ends]):
            size = stop[some] - self.low[some]
            which = np.repeat(some, size)
            offsets = np.repeat(np.cumsum(size) - size, size)
            starts = np.arange(len(which)) - offsets + self.low[which]
            will_do = self._allow(starts, which)
            found_starts.append(starts[will_do])
            found_ends.append(which[will_do])
        self.single_starts = np.concatenate(found_starts)
        ends = np.concatenate(found_ends)
        self.single_offsets = np.flatnonzero(np.diff(ends, prepend=-1))
        self.single_ends = ends[self.single_offsets]

    def _allow(self, starts: Integers, ends: Integers) -> Booleans:
        allowed: Booleans = self.rules.allow(starts, ends) & (
            self.keys[starts] >= self.needed[ends]
        )
        return allowed

    def extend(self, reached: Integers, fewest: Integers, table: Integers) -> None:
        """Lowers `reached` to what one more stage needs behind `fewest`."""
        if self.closed is not None:
            fewest = np.where(self.closed, _NONE, fewest)
            table = _table(fewest)
        best = np.minimum(table[self.left], table[self.right]) + self.replicas
        reached[self.ranged] = np.minimum(reached[self.ranged], best)
        if len(self.single_offsets):
            best = np.minimum.reduceat(fewest[self.single_starts], self.single_offsets)
            ends = self.single_ends
            reached[ends] = np.minimum(reached[ends], best + self.replicas)

    def starts(self, end: int) -> Integers:
        """All starts that an end may have."""
        if not self.open[end]:
            return _EMPTY
        starts = np.arange(self.low[end], self.rules.behind[end])
        return starts[self._allow(starts, np.full(len(starts), end))]


_EMPTY = np.array((), dtype=np.int64)


def _lowest_from(column: Floats) -> Floats:
    """The lowest entry from each place on, without the last point, where no stage starts."""
    lowest = column.copy()
    lowest[-1] = np.inf
    return np.minimum.accumulate(lowest[::-1])[::-1]


def _portions(ends: Integers, sizes: Integers) -> list[Integers]:
    """Consecutive ends with not too many starts together."""
    count = int(np.ceil(sizes.sum() / _MOST_PAIRS))
    bounds = np.searchsorted(np.cumsum(sizes), np.arange(1, count) * _MOST_PAIRS)
    return [part for part in np.split(ends, bounds) if len(part)]


def _table(column: Integers) -> Integers:
    """Lowest of the 1, 2, 4, ... entries from each place on: a row each, flat."""
    rows, width = [column], 1
    while 2 * width <= len(column):
        above = rows[-1].copy()
        np.minimum(above[:-width], rows[-1][width:], out=above[:-width])
        rows.append(above)
        width *= 2
    return np.concatenate(rows)
