"""What one run of one variant showed.

Samples per second are the batch over the mean step, the first steps left out (`dnic.runtime.
stopwatch`), of the process whose mean step is longest, because that one holds the others. The mean
and not the median: in a pipeline with a window some steps wait and others do not, and what was
trained in the end is what counts. The median is kept beside it; where the two are far apart, the
machine was disturbed.

The ceiling has no process that holds the others. It is what the same work would take if it were
divided evenly: the batch times the number of stages over the sum of their steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any

from dnic.runtime.plan import Mode


@dataclass(frozen=True)
class Measured:
    """Figures of one run; lists have an entry for each process.

    Attributes:
        samples_per_s: by the mean step.
        median_samples_per_s: by the median step.
        slowest_samples_per_s: of the slowest process alone; differs for the ceiling only.
        step_us: mean steps.
        parts_us: mean time of each part of a step.
        memory_bytes: most that the process has held.
        in_flight_bytes: that messages under way can take; None where torch sends.
        sent_bytes: of all processes in one step; None where torch sends.
        steps: that were made.
    """

    samples_per_s: float
    median_samples_per_s: float
    slowest_samples_per_s: float
    step_us: tuple[float, ...]
    parts_us: tuple[Mapping[str, float], ...]
    memory_bytes: tuple[int, ...]
    in_flight_bytes: tuple[int, ...] | None
    sent_bytes: float | None
    steps: int


def measured(rows: Sequence[Mapping[str, Any]], mode: Mode) -> Measured:
    """The figures of a run.

    Args:
        rows: one for each epoch, as `metrics.jsonl` has them. Of several the first is left out:
            it warmed the caches up.
        mode: of the run.
    """
    steps_before = [0, *(row["step"] for row in rows)]
    counts = [row["step"] - before for row, before in zip(rows, steps_before, strict=False)]
    steps = sum(counts)
    if len(rows) > 1:
        rows, counts = rows[1:], counts[1:]
    batch = sum(row["samples"] for row in rows) / sum(counts)
    ranks = range(len(rows[0]["rank_step_us"]))
    mean_us = [fmean(row["rank_step_us"][rank]["mean"] for row in rows) for rank in ranks]
    median_us = [median(row["rank_step_us"][rank]["median"] for row in rows) for rank in ranks]
    slowest = max(ranks, key=mean_us.__getitem__)
    if mode == "alone":
        step_us, middle_us = fmean(mean_us), fmean(median_us)
    else:
        step_us, middle_us = mean_us[slowest], median_us[slowest]
    sent, in_flight = rows[-1]["sent_bytes"], rows[-1]["in_flight_bytes"]
    return Measured(
        samples_per_s=batch / step_us * 1e6,
        median_samples_per_s=batch / middle_us * 1e6,
        slowest_samples_per_s=batch / mean_us[slowest] * 1e6,
        step_us=tuple(mean_us),
        parts_us=tuple(_parts([row["parts_us"][rank] for row in rows]) for rank in ranks),
        memory_bytes=tuple(max(row["memory_bytes"][rank] for row in rows) for rank in ranks),
        in_flight_bytes=None if None in in_flight else tuple(in_flight),
        sent_bytes=None if None in sent else sum(sent) / counts[-1],
        steps=steps,
    )


def _parts(epochs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of every part over the epochs."""
    names = dict.fromkeys(name for parts in epochs for name in parts)
    return {name: fmean(parts.get(name, 0.0) for parts in epochs) for name in names}
