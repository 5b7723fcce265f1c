"""Clocks: how long a call takes, whatever else the machine does.

`torch.utils.benchmark` times one statement; a training step is timed in its phases here, and one
thread by the CPU time that it used: waiting for a core does not count, page faults do. Several
threads are timed by the wall clock. CUDA is waited for before each look at the clock.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch

_LOOKS = 200


class Clock:
    """Microseconds, on one device.

    Args:
        device: where the work runs.
        threads: that it runs in, on a CPU.

    Attributes:
        device: as given.
    """

    def __init__(self, device: torch.device, threads: int = 1) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        alone = threads == 1 and not self._cuda
        self._read = time.thread_time_ns if alone else time.perf_counter_ns
        self.cost_us = 0.0
        looks = [self() for _ in range(_LOOKS)]
        self.cost_us = (looks[-1] - looks[0]) / (_LOOKS - 1)

    def __call__(self) -> float:
        """Now."""
        if self._cuda:
            torch.cuda.synchronize()
        return self._read() / 1000

    def between(self, start_us: float, end_us: float) -> float:
        """Microseconds between two looks, without what looking costs; never negative."""
        return max(end_us - start_us - self.cost_us, 0.0)


@contextmanager
def threads_set(threads: int) -> Iterator[None]:
    """So many threads, and no denormals as at run time; both are put back."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_num_threads(before)
        torch.set_flush_denormal(False)


def repeated(
    once: Callable[[], Sequence[float]], budget_us: float, least: int = 3, most: int = 60
) -> list[list[float]]:
    """Run `once` until the budget is used up; what it returned, a list for each phase.

    The first run, which fills caches and buffers, is not counted unless it used the whole budget.
    """
    started = time.perf_counter_ns() / 1000
    first = list(once())
    rows: list[list[float]] = []
    if time.perf_counter_ns() / 1000 - started > budget_us:
        rows.append(first)
    while len(rows) < most:
        if rows and time.perf_counter_ns() / 1000 - started > budget_us:
            break
        rows.append(list(once()))
        used = time.perf_counter_ns() / 1000 - started
        if len(rows) >= least and used > budget_us:
            break
    return [list(phase) for phase in zip(*rows, strict=True)]


def typical(times: Sequence[float]) -> float:
    """The median: what training at length will take."""
    ordered = sorted(times)
    return ordered[(len(ordered) - 1) // 2]


def trimmed_mean(times: Sequence[float]) -> float:
    """The mean without the longest twentieth: what a run costs as a rule, its usual waits included.

    Two threads that share a core wait for one another's slice of it (3 ms on Linux): sometimes.
    """
    ordered = sorted(times)
    kept = ordered[: max(1, len(ordered) - len(ordered) // 20)]
    return sum(kept) / len(kept)


def undisturbed(times: Sequence[float]) -> float:
    """The lower quartile, for wall clocks: what else the machine does only slows a run down."""
    ordered = sorted(times)
    return ordered[(len(ordered) - 1) // 4]
