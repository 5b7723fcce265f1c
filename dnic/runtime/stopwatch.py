"""Where the time of a training step goes, part by part.

A process calls `lap` at the end of every part of a step. Sums over the epoch tell what a step is
made of; where a trace is asked for, every lap is kept. A lap costs a look at the clock and an
addition (half a microsecond), so it always runs. Waiting for other processes is a part of its own:
the links count it, and it is taken out of the part in which it happened. These are the host's
times; where it runs ahead of its device, `dnic.runtime.device_stopwatch` takes the device's.

The first steps of an epoch fill the pipeline and warm caches up: over a slow link the first
messages take some round trips, and with a window the first wait for one comes only when it is used
up. So the first eight steps do not count, or the first third where there are fewer than 24.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median

WARMUP_STEPS = 8
WAIT = "wait"


@dataclass(frozen=True)
class Lap:
    """One part of one step; times are seconds of the machine's monotonic clock.

    Attributes:
        part: its name.
        start_s, end_s: when.
        wait_s: of it spent waiting for other processes.
    """

    part: str
    start_s: float
    end_s: float
    wait_s: float


class Stopwatch:
    """Times of the steps of one epoch and of their parts.

    Args:
        waited_s: seconds for which this process has waited for others so far.
        keep: of how many steps, the last ones, to keep every lap.
    """

    def __init__(self, waited_s: Callable[[], float] = lambda: 0.0, *, keep: int = 0) -> None:
        self._waited_s = waited_s
        self._waited = waited_s()
        self._stalled_s = 0.0
        self._sums: dict[str, float] = {}
        self._warming: list[dict[str, float]] = [{}]  # sums after each of the first steps
        self._kept: deque[list[Lap]] = deque(maxlen=keep)
        self._laps: list[Lap] | None = [] if keep else None
        self._last = time.perf_counter()
        self._ticks_s = [self._last]

    def lap(self, part: str) -> None:
        """What went on since the last lap was this part."""
        now, waited = time.perf_counter(), self._waited_s()
        self._count(part, now, waited - self._waited)
        self._waited = waited

    def tick(self) -> None:
        """A step is over; what went on since the last lap is `rest`."""
        self.lap("rest")
        self._end_step()

    def stalled_s(self) -> float:
        """Seconds for which a device stood still for messages; none in main memory."""
        return self._stalled_s

    def _count(self, part: str, end_s: float, wait_s: float) -> None:
        """Counts a part that began where the last one ended."""
        sums = self._sums
        sums[part] = sums.get(part, 0.0) + (end_s - self._last - wait_s)
        if wait_s:
            sums[WAIT] = sums.get(WAIT, 0.0) + wait_s
        if self._laps is not None:
            self._laps.append(Lap(part, self._last, end_s, wait_s))
        self._last = end_s

    def _end_step(self) -> None:
        self._ticks_s.append(self._last)
        if self._laps is not None:
            self._kept.append(self._laps)
            self._laps = []
        if len(self._warming) <= WARMUP_STEPS:
            self._warming.append(dict(self._sums))

    def step_us(self) -> dict[str, float] | None:
        """`median`, `min` and `mean` of a step, in microseconds; None before the first is over."""
        steps = [(b - a) * 1e6 for a, b in pairwise(self._ticks_s)]
        steps = steps[_warming(len(steps)) :]
        if not steps:
            return None
        return {"median": median(steps), "min": min(steps), "mean": fmean(steps)}

    def parts_us(self) -> dict[str, float]:
        """Mean microseconds of each part of a step; together they are the mean step."""
        steps = len(self._ticks_s) - 1
        if not steps:
            return {}
        skipped = _warming(steps)
        before = self._warming[skipped]
        return {
            part: (total - before.get(part, 0.0)) / (steps - skipped) * 1e6
            for part, total in self._sums.items()
        }

    @property
    def laps(self) -> list[Lap]:
        """The kept ones, in order."""
        return [lap for step in self._kept for lap in step]


def _warming(steps: int) -> int:
    """How many of an epoch's steps do not count."""
    return min(WARMUP_STEPS, steps // 3)
