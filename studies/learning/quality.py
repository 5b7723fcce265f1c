"""What runs reached, over seeds: the figures that tables, goals and plots are made of."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

from studies.learning.runs import Run
from studies.learning.store import Result


@dataclass(frozen=True)
class Done:
    """A run that ended well.

    Attributes:
        run: what it was.
        result: all that was found.
    """

    run: Run
    result: Result

    @property
    def final(self) -> float | None:
        """Quality at the end; None for a run whose loss is no number."""
        quality = self.result["curve"][-1]["quality"]
        return None if quality is None else float(quality)


@dataclass(frozen=True)
class Figure:
    """A quality over seeds; `lost` counts those whose loss was no number."""

    values: tuple[float, ...]
    lost: int = 0

    @property
    def mean(self) -> float:
        """Over the seeds that have one."""
        return mean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation; None of one seed."""
        return stdev(self.values) if len(self.values) > 1 else None


def done(results: Iterable[Result]) -> list[Done]:
    """The runs that ended well."""
    found = [(Run.from_json(result["run"]), result) for result in results]
    return [Done(run, result) for run, result in found if result.get("error") is None]


def select(runs: Iterable[Done], **wanted: Any) -> list[Done]:
    """Those whose description has these values."""
    return [
        found
        for found in runs
        if all(getattr(found.run, name) == value for name, value in wanted.items())
    ]


def figure(runs: Sequence[Done]) -> Figure | None:
    """The quality of some runs that differ in their seed; None without any."""
    finals = [found.final for found in runs]
    values = tuple(value for value in finals if value is not None)
    return Figure(values, len(finals) - len(values)) if values else None


def by_seed(runs: Sequence[Done]) -> dict[int, float]:
    """The quality of runs that differ in their seed."""
    return {found.run.seed: found.final for found in runs if found.final is not None}


def shortfall(runs: Sequence[Done], exact: Sequence[Done]) -> float | None:
    """How much worse runs are than backprop with the same seeds, on average; below 0: better.

    In points of accuracy, or as a share of backprop's bits per character. None where no seed is
    in both, or a run was lost.
    """
    ours, theirs = by_seed(runs), by_seed(exact)
    if not ours or len(ours) < len(runs) or not ours.keys() <= theirs.keys():
        return None
    if runs[0].run.classifies:
        return mean(theirs[seed] - ours[seed] for seed in ours)
    return mean(ours[seed] / theirs[seed] - 1 for seed in ours)


def better(run: Run, one: float, other: float) -> bool:
    """Whether one quality is better than another."""
    return one > other if run.classifies else one < other


def epochs_to(points: Sequence[tuple[int, float]], quality: float, run: Run) -> float | None:
    """Epochs after which a quality is reached, between numbers of epochs interpolated.

    Args:
        points: epochs and the quality after them, from few to many.
        quality: to be reached.
        run: says which quality is better.

    Returns:
        The fewest where those are good enough; None where none are.
    """
    before: tuple[int, float] | None = None
    for epochs, reached in points:
        if not better(run, quality, reached):
            if before is None:
                return float(epochs)
            part = (quality - before[1]) / (reached - before[1])
            return before[0] + part * (epochs - before[0])
        before = epochs, reached
    return None


def explained(found: Done) -> float | None:
    """Share of the true gradients' squared norm that heads explain, the mean over interfaces."""
    return _mean(found, "explained")


def cosine(found: Done) -> float | None:
    """Cosine of predicted and true gradients, the mean over interfaces."""
    return _mean(found, "cosine")


def _mean(found: Done, name: str) -> float | None:
    rows = found.result.get("predictions", {}).values()
    values = [row[name] for row in rows if row.get(name) is not None]
    return mean(values) if values else None
