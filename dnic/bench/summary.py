"""Several rounds of runs as one figure for each variant.

Ratios are made within a round, where the runs follow one another, and their median is taken over
the rounds: a machine that is slower in one round is slower for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

from dnic.bench.measured import Measured
from dnic.bench.variant import Variant

BASE, CEILING = "backprop", "ceiling"


def summary(
    variant: Variant, rounds: Mapping[str, Sequence[Measured]], wire_bytes: int
) -> dict[str, Any]:
    """What the rounds showed of one variant: plain data.

    Args:
        variant: which; it has been run in every round, or in the first ones.
        rounds: figures of every variant, in the order of the rounds.
        wire_bytes: that a step sends by the plan; counts where nobody counted.
    """
    runs = rounds[variant.name]
    speeds = [run.samples_per_s for run in runs]
    counted = runs[-1].sent_bytes
    entry = {
        "name": variant.name,
        "mode": variant.mode,
        "processes": variant.processes,
        "microbatches": variant.microbatches,
        "threads": variant.threads,
        "samples_per_s": median(speeds),
        "min_samples_per_s": min(speeds),
        "max_samples_per_s": max(speeds),
        "median_step_samples_per_s": median(run.median_samples_per_s for run in runs),
        "ratio_to_one_core": _ratio(runs, rounds.get(BASE)),
        "ratio_to_ceiling": _ratio(runs, rounds.get(CEILING)),
        "wire_bytes_per_step": wire_bytes if counted is None else counted,
        "wire_bytes_counted": counted is not None,
        "step_us": _by_rank([run.step_us for run in runs], fmean),
        "parts_us": _parts(runs),
        "memory_bytes": _by_rank([run.memory_bytes for run in runs], max),
        "in_flight_bytes": runs[-1].in_flight_bytes,
        "steps": [run.steps for run in runs],
        "rounds": speeds,
    }
    if variant.name == CEILING:
        slowest = median(run.slowest_samples_per_s for run in runs)
        entry["slowest_stage_samples_per_s"] = slowest
    return entry


def _ratio(runs: Sequence[Measured], base: Sequence[Measured] | None) -> float | None:
    if not base:
        return None
    pairs = zip(runs, base[: len(runs)], strict=True)
    return median(run.samples_per_s / other.samples_per_s for run, other in pairs)


def _by_rank(runs: Sequence[Sequence[float]], join: Any) -> list[float]:
    return [join(values) for values in zip(*runs, strict=True)]


def _parts(runs: Sequence[Measured]) -> list[dict[str, float]]:
    """Of every process, the mean of each part over the rounds."""
    found = []
    for rank in range(len(runs[0].parts_us)):
        names = dict.fromkeys(name for run in runs for name in run.parts_us[rank])
        found.append(
            {name: fmean(run.parts_us[rank].get(name, 0.0) for run in runs) for name in names}
        )
    return found
