"""The exact partition: which gaps to cut so that the slowest stage is as fast as possible.

Stages are contiguous in execution order, so that the best s stages of the first j operations end in
one stage [i, j) behind the best s-1 stages of the first i (the dynamic programme of PipeDream, SOSP
2019, section 3.1, without replication). networkx and scipy have no such bottleneck partition with
costs on the cuts. Numbers in, gaps out: nothing here knows torch, models or names.

Two passes, both exact. The first finds the shortest step. The second, among all partitions within a
tolerance of it, takes one with the fewest stages and the cuts that are the best to have: an exactly
balanced cut often carries several tensors where one a few operations away carries one. (Stages with
next to nothing to do are avoided first, or the tidiest cut would be the one right behind the
input.) A tensor that skips stages counts at every cut that it crosses; only contiguous stages are
considered.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dnic.errors import PartitionError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

TOLERANCE = 0.06
IDLE_SHARE = 0.1
_ROUNDING = 1e-9


@dataclass(frozen=True)
class CutProblem:
    """What is to be cut, as numbers. A gap `g` lies before operation `g`; there are n + 1.

    Attributes:
        times_us: time of each of the n operations in one step, none negative.
        candidates: gaps that may be cut, ascending, each in 1..n-1.
        max_stages: as many stages at most; the number of devices.
        stages: exactly so many; None for the fewest whose step is within the tolerance of the
            shortest with any number.
        fixed: gaps that must be cut.
        keep_together: half-open ranges of operations that one stage must hold.
        before_us: for each gap the time that a cut there adds to the stage before it (a head,
            sending); empty for none. Likewise `after_us` for the stage after it.
        link_us: for each gap the time that a cut there keeps the link busy, which bounds the step.
        memory_bytes: memory of each operation; empty for none. Likewise `before_bytes` and
            `after_bytes` for each gap.
        limits_bytes: memory of the device of each stage, `max_stages` entries, None for unlimited;
            empty for no limits.
        preferences: for each gap numbers of which the sum over the cuts is minimised, the first
            number first, among all partitions within the tolerance; empty for none.
        tolerance: how much longer than the shortest a step may be for the sake of `preferences`.
        idle_share: a stage whose operations take less than this share of the shortest step is idle;
            among the partitions within the tolerance, those with the fewest such stages count.
    """

    times_us: tuple[float, ...]
    candidates: tuple[int, ...]
    max_stages: int
    stages: int | None = None
    fixed: tuple[int, ...] = ()
    keep_together: tuple[tuple[int, int], ...] = ()
    before_us: tuple[float, ...] = ()
    after_us: tuple[float, ...] = ()
    link_us: tuple[float, ...] = ()
    memory_bytes: tuple[int, ...] = ()
    before_bytes: tuple[int, ...] = ()
    after_bytes: tuple[int, ...] = ()
    limits_bytes: tuple[int | None, ...] = ()
    preferences: tuple[tuple[int, ...], ...] = ()
    tolerance: float = TOLERANCE
    idle_share: float = IDLE_SHARE

    @property
    def usable(self) -> tuple[int, ...]:
        """Candidates that split no group that is to stay together."""
        return tuple(
            gap for gap in self.candidates if not any(a < gap < b for a, b in self.keep_together)
        )


@dataclass(frozen=True)
class CutSolution:
    """Where to cut.

    Attributes:
        cuts: gaps, ascending.
        step_us: the slowest stage, or the busiest link, with these cuts.
        optimum_us: the shortest possible, with as many stages if their number was given.
        examined: ranges of operations that were looked at: the work done.
    """

    cuts: tuple[int, ...]
    step_us: float
    optimum_us: float
    examined: int


def solve(problem: CutProblem) -> CutSolution:
    """Cut so that the step is as short as possible, or at most the tolerance longer and tidier.

    Raises:
        PartitionError: no partition satisfies the constraints; says which one fails by how much.
    """
    _check_counts(problem)
    tables = _Tables(problem)
    best = tables.bottleneck(tables.time_rows)[:, -1]
    optimum = float(best[1:].min() if problem.stages is None else best[problem.stages])
    if not np.isfinite(optimum):
        raise _too_little_memory(tables, problem)
    limit = optimum * (1 + problem.tolerance) * (1 + _ROUNDING)
    stages = problem.stages or 1 + int(np.argmax(best[1:] <= limit))
    cuts, step = tables.tidiest(stages, limit, optimum * problem.idle_share)
    return CutSolution(cuts, step, optimum, tables.examined)


class _Tables:
    """The problem at its points: the start, every usable gap, the end."""

    def __init__(self, problem: CutProblem) -> None:
        n = len(problem.times_us)
        points = np.array((0, *problem.usable, n), dtype=np.int64)
        self.points = points
        self.last = len(points) - 1
        self.stages = problem.stages or problem.max_stages
        self.time = _prefix(problem.times_us, n)[points]
        self.before = _at(problem.before_us, points)
        self.after = _at(problem.after_us, points)
        self.link = _at(problem.link_us, points)
        self.memory = _prefix(problem.memory_bytes, n)[points]
        self.before_bytes = _at(problem.before_bytes, points)
        self.after_bytes = _at(problem.after_bytes, points)
        limits = problem.limits_bytes or (None,) * self.stages
        self.limits = np.array([np.inf if b is None else b for b in limits[: self.stages]])
        keys = np.array(problem.preferences or [()] * (n + 1), dtype=np.int64)[points].T
        self.keys = _packed(keys, self.stages)
        # A stage that ends at point j starts no earlier than the last fixed gap before j.
        fixed = np.searchsorted(points, sorted(problem.fixed))
        self.lowest = np.zeros(len(points), dtype=np.int64)
        for point in fixed:
            self.lowest[point + 1 :] = point
        self.examined = 0

    def stage_us(self, i: slice, j: int) -> Floats:
        """Time of the stages from the points `i` to the point `j`, their links included."""
        time = self.time[j] - self.time[i] + self.after[i] + self.before[j]
        bounded: Floats = np.maximum(time, self.link[j])
        return bounded

    def stage_bytes(self, i: slice, j: int) -> Floats:
        """Memory of the same stages."""
        held: Floats = self.memory[j] - self.memory[i] + self.after_bytes[i] + self.before_bytes[j]
        return held

    def time_rows(self, i: slice, j: int) -> Floats:
        """Time as 1st, 2nd, ... stage: infinite where that stage's device is too small."""
        time = self.stage_us(i, j)[None, :]
        fits = self.stage_bytes(i, j)[None, :] <= self.limits[:, None]
        return np.where(fits, time, np.inf)

    def excess_rows(self, i: slice, j: int) -> Floats:
        """Bytes beyond the device's memory as 1st, 2nd, ... stage; negative where there is room."""
        excess: Floats = self.stage_bytes(i, j)[None, :] - self.limits[:, None]
        return excess

    def bottleneck(self, rows: Callable[[slice, int], Floats]) -> Floats:
        """`best[s, j]`: the smallest possible maximum over s stages that end at point j."""
        best = np.full((self.stages + 1, self.last + 1), np.inf)
        best[0, 0] = -np.inf
        for j in range(1, self.last + 1):
            i = slice(int(self.lowest[j]), j)
            best[1:, j] = np.maximum(best[:-1, i], rows(i, j)).min(axis=1)
            self.examined += i.stop - i.start
        return best

    def tidiest(self, stages: int, limit: float, idle_us: float) -> tuple[tuple[int, ...], float]:
        """Cuts with the fewest idle stages, then of least preference sum, then least maximum.

        No stage is above `limit`; idle are those whose operations take less than `idle_us`.
        """
        shape = (stages + 1, self.last + 1)
        reached = np.zeros(shape, dtype=bool)
        idle = np.zeros(shape, dtype=np.int64)
        sums = np.zeros((len(self.keys), *shape), dtype=np.int64)
        slowest = np.full(shape, np.inf)
        parent = np.zeros(shape, dtype=np.int64)
        reached[0, 0] = True
        slowest[0, 0] = -np.inf
        for j in range(1, self.last + 1):
            # Whatever starts earlier is over the limit by its operations alone.
            first = int(np.searchsorted(self.time, self.time[j] - limit))
            i = slice(min(max(first, int(self.lowest[j])), j), j)
            if i.start == j:
                continue
            self.examined += i.stop - i.start
            time = self.time_rows(i, j)[:stages]
            left = reached[:-1, i] & (time <= limit)
            idle_here = idle[:-1, i] + (self.time[j] - self.time[i] < idle_us)
            for key in (idle_here, *sums[:, :-1, i]):
                sum_here = np.where(left, key, np.iinfo(np.int64).max)
                left &= sum_here == sum_here.min(axis=1)[:, None]
            worst = np.where(left, np.maximum(slowest[:-1, i], time), np.inf)
            chosen = worst.argmin(axis=1)
            of = np.arange(stages)
            reached[1:, j] = left.any(axis=1)
            slowest[1:, j] = worst[of, chosen]
            parent[1:, j] = chosen + i.start
            idle[1:, j] = idle_here[of, chosen]
            added = self.keys[:, j] if j < self.last else np.zeros(len(self.keys), dtype=np.int64)
            sums[:, 1:, j] = sums[:, of, chosen + i.start] + added[:, None]
        cuts = []
        j = self.last
        for s in range(stages, 1, -1):
            j = int(parent[s, j])
            cuts.append(int(self.points[j]))
        return tuple(reversed(cuts)), float(slowest[stages, self.last])


def _prefix(entries: tuple[float, ...], n: int) -> Floats:
    """Sums of the first 0, 1, ..., n entries; zeros for none."""
    return np.concatenate(([0.0], np.cumsum(entries or np.zeros(n), dtype=np.float64)))


def _at(entries: tuple[float, ...], points: Integers) -> Floats:
    """Entries at the gaps of `points`; nothing at the two ends, where there is no cut."""
    if not entries:
        return np.zeros(len(points))
    taken = np.array(entries, dtype=np.float64)[points]
    taken[[0, -1]] = 0.0
    return taken


def _packed(keys: Integers, stages: int) -> Integers:
    """Fewer keys with the same order of sums over at most `stages` entries: digits of one number.

    Each key that is added is a pass over all ranges; a 64-bit integer holds several.
    """
    packed: list[Integers] = []
    for key in keys:
        base = int(key.max()) * stages + 1
        if packed and (int(packed[-1].max()) * stages + 1) * base < np.iinfo(np.int64).max:
            packed[-1] = packed[-1] * base + key
        else:
            packed.append(key)
    return np.array(packed, dtype=np.int64).reshape(len(packed), keys.shape[-1])


def _check_counts(problem: CutProblem) -> None:
    usable = set(problem.usable)
    for gap in problem.fixed:
        if gap not in problem.candidates:
            raise PartitionError(f"gap {gap} was asked for but may not be cut")
        if gap not in usable:
            raise PartitionError(
                f"gap {gap} was asked for but lies inside a group to keep together",
                hint="take the cut or the group away",
            )
    stages = problem.stages
    most = problem.max_stages if stages is None else stages
    if most > problem.max_stages:
        raise PartitionError(
            f"{most} stages asked, only {problem.max_stages} devices",
            expected="one device for each stage",
        )
    if len(set(problem.fixed)) + 1 > most:
        raise PartitionError(
            f"{len(set(problem.fixed))} cuts make {len(set(problem.fixed)) + 1} stages, "
            f"only {most} {'asked' if stages else 'devices'}",
        )
    if stages is not None and stages - 1 > len(usable):
        raise PartitionError(
            f"{stages} stages asked, only {len(usable)} cut points",
            expected=f"at most {len(usable) + 1} stages",
            hint="ask for fewer stages, or for `auto`",
        )


def _too_little_memory(tables: _Tables, problem: CutProblem) -> PartitionError:
    """The partition that is nearest to fitting, and what it lacks."""
    best = tables.bottleneck(tables.excess_rows)
    stages = problem.stages or 1 + int(np.argmin(best[1:, -1]))
    j, worst = tables.last, (-np.inf, 0, 0.0)
    for s in range(stages, 0, -1):
        i = slice(int(tables.lowest[j]), j)
        excess = tables.excess_rows(i, j)[s - 1]
        start = i.start + int(np.argmin(np.maximum(best[s - 1, i], excess)))
        needed = float(tables.stage_bytes(slice(start, start + 1), j)[0])
        worst = max(worst, (needed - float(tables.limits[s - 1]), s - 1, needed))
        j = start
    _, stage, needed = worst
    limit = float(tables.limits[stage])
    return PartitionError(
        f"stage {stage} needs {_size(needed)}, device {stage} has {_size(limit)}",
        expected=f"{stages} stage(s) that each fit the memory of their device; "
        f"this is the nearest to it, {_size(needed - limit)} too much",
        hint="more devices, a smaller batch, or an optimizer that keeps less state",
    )


def _size(nbytes: float) -> str:
    """`21.4 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if nbytes < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} GiB"
