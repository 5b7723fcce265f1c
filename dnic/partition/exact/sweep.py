"""Is there a partition whose step takes no longer than a limit, and at what least penalty?

A dynamic programme over states of devices (see `states`), in the order of the chain. For a state,
decoupled cuts and penalty units so far, the class and replicas of the stage to come, and the point
where that stage starts, it keeps the least time that is owed there: zero behind a decoupled cut,
the time of the open group behind a locked one. Points that cannot be reached within the limit, or
from which the end cannot be, are left out: close to the optimum, nearly all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby

import numpy as np

from dnic.partition.exact.problem import Partition
from dnic.partition.exact.reach import Keys, Rules, rules_for
from dnic.partition.exact.states import Edge, State, StateGraph
from dnic.partition.exact.terrain import Booleans, Floats, Integers, Terrain

_ROUNDING = 1e-9


@dataclass(frozen=True)
class Bounds:
    """What a partition must keep to.

    Attributes:
        step_us: the longest step.
        units: most units of penalty, in multiples of `Sweep.divisor`.
        stages: exactly so many; None for any number.
        least_us: a stage whose operations take less counts as idle, and none may be.
    """

    step_us: float
    units: int
    stages: int | None = None
    least_us: float = 0.0


class Sweep:
    """Decisions over one terrain and one graph of states.

    Args:
        terrain: the columns.
        graph: the states.
        most_decoupled: as many decoupled cuts at most; None for no limit.

    Attributes:
        divisor: penalties are counted in multiples of it.
        examined: pairs of a state and an end that were looked at so far.
    """

    def __init__(self, terrain: Terrain, graph: StateGraph, most_decoupled: int | None) -> None:
        problem = terrain.problem
        self.terrain = terrain
        self.graph = graph
        self.most_decoupled = most_decoupled
        self.locked = [option.locked for option in problem.options]
        every = [(k, r) for k in range(len(problem.devices)) for r in problem.replica_counts]
        # With one class and nothing to wait for, the stage to come makes no difference that its
        # start could not tell.
        self.merged = len(problem.devices) == 1 and not any(self.locked)
        self.entries = every[:1] if self.merged else every
        self.entry_of = {entry: 0 if self.merged else at for at, entry in enumerate(every)}
        self.divisor = int(np.gcd.reduce(np.concatenate(terrain.units))) or 1
        self.units = [column // self.divisor for column in terrain.units]
        self.least_penalty = terrain.least_decoupled_units // self.divisor
        self.widest = max(one.speed for one in problem.devices) * max(problem.replica_counts)
        self.examined = 0
        self.wait = cache(self._wait)

    def least_units(self, bounds: Bounds) -> Found | None:
        """A partition of least penalty within the bounds; None where there is none."""
        run = _Run(self, bounds)
        endings = (ending for _, ending in run.endings())
        least = min(endings, key=lambda ending: ending.units, default=None)
        return None if least is None else Found(run.partition(least), least.units)

    def stage_counts(self, bounds: Bounds) -> Iterator[int]:
        """How many stages there may be within the bounds, ascending."""
        return (stages for stages, _ in _Run(self, bounds).endings())

    def _wait(self, device: int, replicas: int) -> Floats:
        """How long a locked cut behind such a stage is waited for, [entries, points]."""
        return np.stack(
            [
                self.terrain.wait_us(device, other, min(replicas, count))
                for other, count in self.entries
            ]
        )


@dataclass(frozen=True)
class Found:
    """A partition and its penalty in multiples of `Sweep.divisor`."""

    partition: Partition
    units: int


@dataclass(frozen=True)
class _Ending:
    """A last stage: the edge to its state, where it starts and what had been spent until there."""

    edge: Edge
    decoupled: int
    units: int
    start: int


@dataclass
class _Band:
    """Time owed behind `units`, ... of penalty at the points `first`, ... of a state.

    [decoupled, units, entry, point]; an entry is a class and a number of replicas of the stage to
    come.
    """

    first: int
    units: int
    owed: Floats

    def at(self, entry: int) -> Floats:
        """[cases, points] of one entry."""
        owed = self.owed[:, :, entry]
        return owed.reshape(-1, owed.shape[-1])


class _Run:
    """One decision: forwards over the states, then back along the partition that was found."""

    def __init__(self, sweep: Sweep, bounds: Bounds) -> None:
        self.sweep = sweep
        self.terrain = sweep.terrain
        self.bounds = bounds
        self.cases = 1 if sweep.most_decoupled is None else sweep.most_decoupled + 1
        self.options = range(len(sweep.locked))
        self.rules = cache(self._rules)
        self.free = cache(self._free)
        self.starts = cache(self._starts)
        self.bands: list[_Band | None] = []

    def endings(self) -> Iterator[tuple[int, _Ending]]:
        """Of least penalty, by number of stages; by 0 where states do not tell that number."""
        start = np.zeros((self.cases, 1, len(self.sweep.entries), 1))
        start[1:] = np.inf
        self.bands = [_Band(0, 0, start)]
        wanted = self.bounds.stages
        for stages, states in groupby(self.sweep.graph.states[1:], key=lambda one: one.stages):
            endings = []
            for state in states:
                self.bands.append(self._reached(state))
                if wanted in (None, stages):
                    endings += [self._ending(edge) for edge in state.incoming]
            found = [ending for ending in endings if ending is not None]
            if found:
                yield stages or 0, min(found, key=lambda ending: ending.units)
            if stages is not None and stages == wanted:
                return

    def _rules(self, device: int, replicas: int, option: int) -> Rules:
        return rules_for(self.terrain, (device, replicas, option), self.bounds.least_us)

    def _free(self, device: int, replicas: int) -> Booleans:
        """Where the link behind such a stage is quick enough for a decoupled cut.

        [entries, points]
        """
        fewest = [
            (k, replicas if self.sweep.merged else min(replicas, r)) for k, r in self.sweep.entries
        ]
        busy = [self.terrain.busy_us(device, k, r) for k, r in fewest]
        return np.stack(busy) <= self.bounds.step_us

    def _starts(self, device: int, replicas: int) -> Floats:
        """Keys of all points where nothing is owed."""
        keys: Floats = self.terrain.start_us(device, replicas)
        if self.sweep.merged:
            keys = np.where(self.free(device, replicas)[0], keys, -np.inf)
        return keys

    def _keys(self, edge: Edge) -> Keys | None:
        """Of the starts of the stages of an edge."""
        band = self.bands[edge.source]
        if band is None:
            return None
        owed = band.at(self.sweep.entry_of[edge.device, edge.replicas])
        own = self.starts(edge.device, edge.replicas)[band.first : band.first + owed.shape[1]]
        return Keys(own - owed, band.first)

    def _band(self, state: State) -> slice:
        """Points that this state can reach, and from which the devices left can reach the end."""
        work, left = self.terrain.least_work, state.left
        if self.bounds.stages is not None and state.stages is not None:
            left = min(left, self.sweep.widest * (self.bounds.stages - state.stages))
        step_us = self.bounds.step_us * (1 + _ROUNDING)
        rounding = work[-1] * _ROUNDING
        low = int(np.searchsorted(work, work[-1] - left * step_us - rounding))
        high = int(np.searchsorted(work, state.used * step_us + rounding, side="right"))
        return slice(max(low, 1), min(high, self.terrain.last))

    def _reached(self, state: State) -> _Band | None:
        band = self._band(state)
        if band.start >= band.stop:
            return None
        low, high = self._units(band)
        if low > high:
            return None
        shape = (self.cases, high - low + 1, len(self.sweep.entries))
        owed = np.full((*shape, band.stop - band.start), np.inf)
        for edge in state.incoming:
            keys = self._keys(edge)
            if keys is None:
                continue
            furthest = self.bounds.step_us + float(keys.best[:, -1].max())
            spent = self.terrain.spent(edge.device, edge.replicas)
            stop = int(np.searchsorted(spent, furthest * (1 + _ROUNDING), side="right"))
            ends = slice(max(band.start, keys.first + 1), min(band.stop, stop))
            if ends.start < ends.stop:
                into = owed[..., ends.start - band.start : ends.stop - band.start]
                for option in self.options:
                    self._extend(_Band(ends.start, low, into), keys, edge, option)
        finite = np.flatnonzero(np.isfinite(owed.reshape(-1, owed.shape[-1])).any(axis=0))
        if not len(finite):
            return None
        left, right = int(finite[0]), int(finite[-1]) + 1
        return _Band(band.start + left, low, owed[..., left:right])

    def _units(self, band: slice) -> tuple[int, int]:
        """Fewest and most units of penalty of which use can be made at these points.

        A locked group runs one stage at a time: before and behind a point there are as many
        decoupled cuts as the work there needs groups.
        """
        work = self.terrain.least_work
        group = self.bounds.step_us * self.sweep.widest * (1 + _ROUNDING)
        done, to_do = work[band.start], work[-1] - work[band.stop - 1]
        least = self.sweep.least_penalty
        low = least * max(int(np.ceil(done / group)) - 1, 0)
        return low, self.bounds.units - least * max(int(np.ceil(to_do / group)) - 1, 0)

    def _extend(self, band: _Band, keys: Keys, edge: Edge, option: int) -> None:
        """Adds stages of an edge that end in cuts of an option at the points of the band."""
        into = band.owed
        ends = slice(band.first, band.first + into.shape[-1])
        source = self.bands[edge.source]
        assert source is not None
        place = (edge.device, edge.replicas)
        end_us = self.terrain.end_us(*place, option)[ends]
        step_us = self.bounds.step_us
        total = end_us - keys.best_for(ends, end_us, step_us, self.rules(*place, option))
        self.sweep.examined += total.size
        possible = (total <= step_us) & self.terrain.allowed[option][ends]
        if not possible.any():
            return
        locked = self.sweep.locked[option]
        owed = np.where(possible, total if locked else 0.0, np.inf)
        owed = owed.reshape(self.cases, -1, owed.shape[-1])
        units = self.sweep.units[option][ends] + (source.units - band.units)
        owed = _shifted(owed, units, into.shape[1])
        if self.sweep.most_decoupled is not None and not locked:
            owed, into = owed[:-1], into[1:]
        if locked:
            later = owed[:, :, None] + self.sweep.wait(*place)[:, ends]
            later[later > step_us] = np.inf
        else:
            later = np.where(self.free(*place)[:, ends], owed[:, :, None], np.inf)
        np.minimum(into, later, out=into)

    def _ending(self, edge: Edge) -> _Ending | None:
        """The last stage on this edge behind the least penalty."""
        keys = self._keys(edge)
        if keys is None:
            return None
        place, last = (edge.device, edge.replicas), self.terrain.last
        end_us = float(self.terrain.end_us(*place, 0)[last])
        if end_us - float(keys.best[:, -1].max()) > self.bounds.step_us:
            return None
        starts = np.arange(keys.first, keys.first + keys.rows.shape[1])
        allowed = self.rules(*place, 0).allow(starts, np.full(len(starts), last))
        rows = np.where(allowed & (end_us - keys.rows <= self.bounds.step_us), keys.rows, -np.inf)
        best = rows.max(axis=1).reshape(self.cases, -1)
        fits = best > -np.inf
        if not fits.any():
            return None
        units = int(np.argmax(fits.any(axis=0)))
        case = int(np.argmax(fits[:, units]))
        row = case * best.shape[1] + units
        source = self.bands[edge.source]
        assert source is not None
        return _Ending(edge, case, units + source.units, keys.first + int(rows[row].argmax()))

    def partition(self, ending: _Ending) -> Partition:
        """Back from the end: for each stage one that leads to what is owed behind it."""
        placement = [(ending.edge.device, ending.edge.replicas)]
        cuts, options = [], []
        at = ending
        while at.edge.source != 0:
            cuts.append(int(self.terrain.points[at.start]))
            at, option = self._before(at)
            options.append(option)
            placement.append((at.edge.device, at.edge.replicas))
        return Partition(tuple(cuts[::-1]), tuple(options[::-1]), tuple(placement[::-1]))

    def _before(self, at: _Ending) -> tuple[_Ending, int]:
        """The stage before a stage, and the option of the cut between them."""
        band = self.bands[at.edge.source]
        assert band is not None
        entry = self.sweep.entry_of[at.edge.device, at.edge.replicas]
        owed = band.owed[at.decoupled, at.units - band.units, entry, at.start - band.first]
        for edge in self.sweep.graph.states[at.edge.source].incoming:
            keys = self._keys(edge)
            if keys is None:
                continue
            for option in self.options:
                found = self._source(at, edge, keys, option, entry, float(owed))
                if found is not None:
                    return found, option
        raise AssertionError("a point that was reached has a way to it")

    def _source(
        self, at: _Ending, edge: Edge, keys: Keys, option: int, entry: int, owed: float
    ) -> _Ending | None:
        end, place, locked = at.start, (edge.device, edge.replicas), self.sweep.locked[option]
        counted = self.sweep.most_decoupled is not None and not locked
        decoupled = at.decoupled - counted
        units = at.units - int(self.sweep.units[option][end])
        source = self.bands[edge.source]
        assert source is not None
        width = source.owed.shape[1]
        if (
            decoupled < 0
            or not 0 <= units - source.units < width
            or not self.terrain.allowed[option][end]
        ):
            return None
        if not locked and not self.free(*place)[entry, end]:
            return None
        row = keys.rows[decoupled * width + units - source.units]
        starts = np.arange(keys.first, min(keys.first + len(row), end))
        row = row[: len(starts)]
        allowed = self.rules(*place, option).allow(starts, np.full(len(starts), end))
        row = np.where(allowed, row, -np.inf)
        if not len(row):
            return None
        start = int(row.argmax())
        total = float(self.terrain.end_us(*place, option)[end] - row[start])
        behind = total + float(self.sweep.wait(*place)[entry, end]) if locked else 0.0
        if total > self.bounds.step_us or behind > owed:
            return None
        return _Ending(edge, decoupled, units, int(starts[start]))


def _shifted(owed: Floats, units: Integers, count: int) -> Floats:
    """`owed` [decoupled, units, ends] moved along its units, to `count` of them.

    Args:
        owed: what to move.
        units: for each end by how many.
        count: how many there are in the result; what falls outside is lost.
    """
    if count == owed.shape[1] and not units.any():
        return owed
    source = np.arange(count)[:, None] - units
    outside = (source < 0) | (source >= owed.shape[1])
    shifted = np.take_along_axis(owed, np.where(outside, 0, source)[None], axis=1)
    shifted[:, outside] = np.inf
    return shifted
