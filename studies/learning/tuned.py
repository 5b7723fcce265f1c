"""The learning rate of each family of models: the best one for backprop, kept for every source."""

from __future__ import annotations

from collections.abc import Iterable

from studies.learning.parts import Family
from studies.learning.runs import Run
from studies.learning.store import Result


def tuned_rate(results: Iterable[Result], family: Family) -> float | None:
    """The rate of a family with the best quality on held-out data; None where none was tried."""
    tried = rates(results, family)
    if not tried:
        return None
    better = max if family[1] != "characters" else min
    return better(tried, key=lambda rate: tried[rate])


def rates(results: Iterable[Result], family: Family) -> dict[float, float]:
    """Quality on held-out data at each learning rate that was tried for a family."""
    data, model, layers, width = family
    found: dict[float, float] = {}
    for result in results:
        run = Run.from_json(result["run"])
        same = (run.part, run.data, run.model) == ("tuning", data, model)
        if same and (run.layers, run.width) == (layers, width) and not result.get("error"):
            quality = result["curve"][-1]["quality"]
            if quality is not None:
                found[run.lr] = quality
    return found
