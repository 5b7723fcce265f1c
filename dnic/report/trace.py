"""Laps as a trace that Perfetto and chrome://tracing show.

The format is the "Trace Event Format" of Chrome's tracing: complete events (`ph: X`) with times in
microseconds, in processes and threads that have names. Each variant becomes a process that begins
at 0, each of its ranks a thread. Time spent waiting for others is a slice within its part; where
in the part it lay is not known, it is drawn at its beginning.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dnic.runtime.stopwatch import WAIT, Lap

_SHORTEST_US = 1.0  # shorter ones cannot be seen, and there are many


def chrome_trace(variants: Mapping[str, Mapping[int, Sequence[Lap]]]) -> dict[str, Any]:
    """The trace, as JSON has it.

    Args:
        variants: laps by variant and rank; the clock is the same for all ranks of a variant.
    """
    events: list[dict[str, Any]] = []
    for process, (name, ranks) in enumerate(variants.items()):
        events.append(_named("process_name", process, 0, name))
        starts = [laps[0].start_s for laps in ranks.values() if laps]
        for rank, laps in ranks.items():
            events.append(_named("thread_name", process, rank, f"rank {rank}"))
            for lap in laps:
                events += _slices(lap, min(starts), process, rank)
    return {"traceEvents": events, "displayTimeUnit": "ms"}


def _named(kind: str, process: int, thread: int, name: str) -> dict[str, Any]:
    return {"name": kind, "ph": "M", "pid": process, "tid": thread, "args": {"name": name}}


def _slices(lap: Lap, zero_s: float, process: int, thread: int) -> list[dict[str, Any]]:
    begin_us, length_us = (lap.start_s - zero_s) * 1e6, (lap.end_s - lap.start_s) * 1e6
    wait_us = lap.wait_s * 1e6
    parts = [(lap.part, length_us), (WAIT, min(wait_us, length_us))]
    return [
        {
            "name": name,
            "cat": "wait" if name == WAIT else "part",
            "ph": "X",
            "ts": round(begin_us, 3),
            "dur": round(us, 3),
            "pid": process,
            "tid": thread,
        }
        for name, us in parts
        if us >= _SHORTEST_US
    ]
