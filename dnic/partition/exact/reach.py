"""For many ends at once, the best start of a stage.

A start's key is such that the stage takes `end_us[j] - key[i]`: the larger, the better. Without
limits the best start before each end is a running maximum. Memory and fixed cuts forbid some
starts; where they forbid the best one, the few that may be left are looked at one by one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dnic.partition.exact.terrain import Booleans, Floats, Integers, Terrain

_MOST_PAIRS = 4_000_000
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Rules:
    """Which starts are forbidden to which ends; columns over all points.

    Attributes:
        lowest: the first start for each end.
        behind: one more than the last start for each end.
        start_bytes: a stage fits where `start_bytes[i] >= end_bytes[j]`.
        end_bytes: see there.
        first_fitting: the first start for each end that could fit.
        binding: whether any start is forbidden at all, but for `behind`.
    """

    lowest: Integers
    behind: Integers
    start_bytes: Floats
    end_bytes: Floats
    first_fitting: Integers
    binding: bool

    def allow(self, starts: Integers, ends: Integers) -> Booleans:
        """Elementwise."""
        allowed: Booleans = (
            (starts >= self.lowest[ends])
            & (starts < self.behind[ends])
            & (self.start_bytes[starts] >= self.end_bytes[ends])
        )
        return allowed


def rules_for(terrain: Terrain, way: tuple[int, int, int], least_us: float) -> Rules:
    """The rules for a class, a number of replicas and the option of the cut behind the stage.

    Args:
        terrain: the columns.
        way: these three.
        least_us: operations of the stage may take no less.
    """
    device, replicas, _ = way
    behind = np.arange(terrain.last + 1)
    if least_us > 0:
        work = terrain.work(device, replicas)
        enough = work - least_us * (1 - _ROUNDING)
        behind = np.minimum(behind, np.searchsorted(work, enough, side="right"))
    start_bytes, end_bytes = terrain.start_bytes(replicas), terrain.end_bytes(*way)
    return Rules(
        lowest=terrain.lowest,
        behind=behind,
        start_bytes=start_bytes,
        end_bytes=end_bytes,
        first_fitting=terrain.first_fitting(*way),
        binding=terrain.has_fixed or bool(start_bytes.min() < end_bytes.max()),
    )


class Keys:
    """Keys of the starts `first`, `first + 1`, ...: a row for each of some cases.

    Args:
        rows: [cases, starts]; minus infinity where no stage may start.
        first: the first start.
    """

    def __init__(self, rows: Floats, first: int) -> None:
        self.rows = rows
        self.first = first
        self.best = np.maximum.accumulate(rows, axis=1)
        self._where: Integers | None = None

    @property
    def where(self) -> Integers:
        """Of each running maximum, the last start that has it."""
        if self._where is None:
            index = np.arange(self.rows.shape[1])
            records = np.where(self.rows == self.best, index, 0)
            self._where = np.maximum.accumulate(records, axis=1)
        return self._where

    def best_for(self, ends: slice, end_us: Floats, longest_us: float, rules: Rules) -> Floats:
        """The largest allowed key for each end, [cases, ends]; minus infinity for none.

        Keys with which the stage takes more than `longest_us` count as none where rules bind.

        Args:
            ends: consecutive points.
            end_us: of these points.
            longest_us: no stage may take longer.
            rules: which starts are forbidden.
        """
        width = self.rows.shape[1]
        position = np.minimum(rules.behind[ends] - self.first, width) - 1
        early = position < 0
        position[early] = 0
        best: Floats = self.best[:, position]
        if early.any():
            best[:, early] = -np.inf
        if not rules.binding:
            return best
        starts = self.where[:, position] + self.first
        forbidden = (rules.start_bytes[starts] < rules.end_bytes[ends]) | (
            starts < rules.lowest[ends]
        )
        if forbidden.any():
            rescued = forbidden & (end_us - best <= longest_us)
            best[forbidden] = -np.inf
            if rescued.any():
                self._rescue(best, rescued, ends.start, position, rules)
        return best

    def _rescue(
        self, best: Floats, rescued: Booleans, first_end: int, position: Integers, rules: Rules
    ) -> None:
        """Looks at every start of the ends whose best one is forbidden."""
        rows, columns = rescued.nonzero()
        ends = columns + first_end
        low = np.maximum(rules.lowest[ends], rules.first_fitting[ends]) - self.first
        low = np.maximum(low, 0)
        high = position[columns] + 1
        # Most ends have no reachable start left at all.
        alive = np.zeros((self.rows.shape[0], self.rows.shape[1] + 1), dtype=np.int64)
        np.cumsum(self.rows > -np.inf, axis=1, out=alive[:, 1:])
        low = np.minimum(low, high)
        some = alive[rows, high] > alive[rows, low]
        rows, columns, ends, low, high = (
            column[some] for column in (rows, columns, ends, low, high)
        )
        sizes = high - low
        done = 0
        while done < len(rows):
            reached = np.cumsum(sizes[done:])
            part = slice(done, done + max(1, int(np.searchsorted(reached, _MOST_PAIRS))))
            size = sizes[part]
            offsets = np.concatenate(([0], np.cumsum(size)[:-1]))
            which = np.repeat(np.arange(len(size)), size)
            starts = np.arange(len(which)) - offsets[which] + low[part][which]
            fits = rules.start_bytes[starts + self.first] >= rules.end_bytes[ends[part]][which]
            keys = np.where(fits, self.rows[rows[part][which], starts], -np.inf)
            best[rows[part], columns[part]] = np.maximum.reduceat(keys, offsets)
            done = part.stop
