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


def estimated(runs: Sequence[Run], cache: Path, console: Console) -> dict[str, dict[str, Any]]:
    """Seconds of runs by part, from a short run of each kind, one after the other.

    Runs by the engine are not estimated: they take the machine for themselves, and links.

    Returns:
        For each part: `runs`, `seconds`, and of each `kind` what was measured and how often it is
        run.
    """
    measured: dict[str, Mapping[str, Any]] = {}
    parts: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run.way != "reference":
            continue
        part = parts.setdefault(run.part, {"runs": 0, "seconds": 0.0, "kinds": {}})
        if run.kind not in measured:
            measured[run.kind] = _measured(run, cache)
            console.print(f"{run.kind}: {_told(measured[run.kind])}", highlight=False)
        found = measured[run.kind]
        part["runs"] += 1
        part["kinds"][run.kind] = part["kinds"].get(run.kind, 0) + 1
        if "error" not in found:
            part["seconds"] += found["ready_s"] + run.steps * found["step_s"]
            part["seconds"] += run.epochs * found["evaluate_s"]
    return parts


def _measured(run: Run, cache: Path) -> dict[str, Any]:
    # Warming up would be all of it.
    short = replace(run, warmup_steps=0)
    return Child("studies.learning.train", short, cache, None, "timed").result()


def _told(found: Mapping[str, Any]) -> str:
    if "error" in found:
        return str(found["error"])
    return ", ".join(f"{name.removesuffix('_s')} {1000 * s:.0f} ms" for name, s in found.items())
