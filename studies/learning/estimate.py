"""How long runs will take: from runs that are done, or from a short one of each kind.

Runs are of a kind when a step of theirs takes about the same time: model, depth, stages, source.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich.console import Console

from studies.learning.child import Child
from studies.learning.runs import Run
from studies.learning.store import Result


class Estimate:
    """Seconds of runs by what earlier ones took.

    Args:
        results: of runs that were done.
    """

    def __init__(self, results: Iterable[Result]) -> None:
        self._by_kind: dict[str, list[float]] = {}
        self._by_model: dict[str, list[float]] = {}
        for result in results:
            run = Run.from_json(result["run"])
            if result.get("error") is None:
                each = result["seconds"] / run.steps
                self._by_kind.setdefault(run.kind, []).append(each)
                self._by_model.setdefault(run.model, []).append(each)

    def seconds(self, run: Run) -> float | None:
        """Of one run; None where nothing like it was done."""
        known = self._by_kind.get(run.kind) or self._by_model.get(run.model)
        return None if known is None else run.steps * mean(known)

    def words(self, left: Sequence[Run], number: int) -> str:
        """What is left to do, `number` at a time."""
        found = [self.seconds(run) for run in left]
        known = [seconds for seconds in found if seconds is not None]
        if not known:
            return ""
        return f"about {duration(sum(known) / len(known) * len(found) / number)} left"


def duration(seconds: float) -> str:
    """`2 h 05 min`, `12 min`, `40 s`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def estimated(runs: Sequence[Run], cache: Path, console: Console) -> dict[str, tuple[int, float]]:
    """How many runs each part has and their seconds, from a short run of each kind.

    Runs by the engine are not estimated: they take the machine for themselves, and links. What this
    dnic cannot run is taken to be as long as the longest of its model and number of stages.
    """
    timed = [run for run in runs if run.way == "reference"]
    measured: dict[str, Mapping[str, Any]] = {}
    for run in timed:
        if run.kind not in measured:
            measured[run.kind] = _measured(run, cache)
            words = f"{run.kind}: {_told(measured[run.kind])}"
            console.print(words, highlight=False, soft_wrap=True)
    longest: dict[tuple[str, int], float] = {}
    for run in timed:
        found = measured[run.kind]
        if "error" not in found:
            place = run.model, run.stages
            longest[place] = max(longest.get(place, 0.0), _seconds(run, found))
    parts: dict[str, tuple[int, float]] = {}
    for run in timed:
        found = measured[run.kind]
        guess = longest.get((run.model, run.stages), 0.0)
        count, seconds = parts.get(run.part, (0, 0.0))
        parts[run.part] = count + 1, seconds + (guess if "error" in found else _seconds(run, found))
    return parts


def _seconds(run: Run, found: Mapping[str, Any]) -> float:
    trained: float = found["ready_s"] + run.steps * found["step_s"]
    return trained + run.epochs * float(found["evaluate_s"])


def _measured(run: Run, cache: Path) -> dict[str, Any]:
    # Warming up would be all of it.
    short = replace(run, warmup_steps=0)
    return Child("studies.learning.train", short, cache, None, "timed").result()


def _told(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    return ", ".join(f"{name.removesuffix('_s')} {1000 * s:.0f} ms" for name, s in found.items())
