"""The best source of part 2 for a model at a lateness: what part 3 runs, and what goals look at."""

from __future__ import annotations

from collections.abc import Iterable

from studies.learning.parts import Family
from studies.learning.quality import Done, Figure, better, done, figure, select
from studies.learning.sources import DECOUPLED, LATE, SOURCES
from studies.learning.store import Result


def best_head(results: Iterable[Result], family: Family, lateness: int | None) -> str | None:
    """The source that part 3 runs in two stages, a stale one aside; None: part 2 has not been run.

    Args:
        results: with those of part 2.
        family: of part 2.
        lateness: at which it is to be good; None: without any true gradient.
    """
    without = [*LATE, "none"]
    if lateness is None:
        without += [name for name, source in SOURCES.items() if source.returns]
    found = ranked(of_sources(done(results), family, 2), lateness or 1, without)
    return found[0][0] if found else None


def of_sources(runs: Iterable[Done], family: Family, stages: int) -> list[Done]:
    """The runs of part 2 of one model and number of stages, without the guard."""
    data, model, layers, width = family
    return select(
        runs,
        part="sources",
        data=data,
        model=model,
        layers=layers,
        width=width,
        stages=stages,
        guard=False,
    )


def ranked(
    runs: Iterable[Done], lateness: int, without: Iterable[str] = ()
) -> list[tuple[str, Figure]]:
    """Sources by quality at a lateness, the best first; those that lost a seed come last.

    A source whose gradients cannot be late is as good at every lateness.
    """
    listed = list(runs)
    found: list[tuple[str, Figure]] = []
    for name in DECOUPLED:
        if name in without:
            continue
        window = lateness if SOURCES[name].lateness_matters else 1
        reached = figure(select(listed, source=name, window=window))
        if reached is not None:
            found.append((name, reached))
    if not found:
        return []
    sign = -1 if better(listed[0].run, 1.0, 0.0) else 1
    return sorted(found, key=lambda entry: (entry[1].lost, sign * entry[1].mean))
