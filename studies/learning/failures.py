"""What did not work, found in the data: no run that disappoints is left out because it does."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

from studies.learning.best import of_sources
from studies.learning.figures import NONE, families_in, named, table
from studies.learning.goals import backprop, missed
from studies.learning.quality import Done, better, by_seed, cosine, done, select
from studies.learning.runs import Run
from studies.learning.sources import SOURCES
from studies.learning.store import Result

LITTLE = 0.5  # of the way from no gradient to backprop
STAGES = (2, 4, 6)


def failures(results: Sequence[Result]) -> Iterator[str]:
    """Lists and a table, each with what it is of; an empty one says so."""
    runs = done(results)
    yield from _listed("Goals missed", missed(runs))
    yield from _short_of(runs)
    yield from _listed("Runs whose loss was no number at the end", _lost(runs))
    yield from _listed("Runs that could not be done", _refused(results))


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"{title}:" if lines else f"{title}: none."
    yield ""
    yield from (f"- {line}" for line in lines)
    if lines:
        yield ""


def _short_of(runs: Sequence[Done]) -> Iterator[str]:
    """A row for each source of part 2 that does little, or harm."""
    rows = []
    for family in families_in(runs, part="sources"):
        exact = by_seed(backprop(runs, family))
        here = [of_sources(runs, family, stages) for stages in STAGES]
        for source in SOURCES:
            cells = [_little(found, source, exact) for found in here]
            if any(cells):
                rows.append([named(family), SOURCES[source].title, *(c or NONE for c in cells)])
    title = f"Less than {LITTLE:.0%} of the way from no gradient (0%) to backprop (100%)"
    if not rows:
        yield from _listed(title, [])
        return
    yield f"{title}; below 0 a"
    yield "source is worse than no gradient at all. In brackets the cosine of predicted and true"
    yield "gradients at the end: it can be high, and what is learnt bad."
    yield ""
    yield from table(["model", "source", *(f"K = {stages}" for stages in STAGES)], rows)
    yield ""


def _little(here: Sequence[Done], source: str, exact: Mapping[int, float]) -> str:
    """At which latenesses a source does little, and how much.

    Args:
        here: the runs of a model and a number of stages.
        source: of some of them.
        exact: backprop's quality for each seed.
    """
    if source in ("exact", "none"):
        return ""
    nothing = by_seed(select(here, source="none"))
    mine = select(here, source=source)
    words = []
    for window in sorted({found.run.window for found in mine}):
        late = select(mine, window=window)
        way = _way(late, nothing, exact)
        if way is None or way >= LITTLE:
            continue
        known = [value for found in late if (value := cosine(found)) is not None]
        told = f"late {window}: " if SOURCES[source].lateness_matters else ""
        told += f"{way:.0%}"
        words.append(f"{told} ({mean(known):.2f})" if known else told)
    return "; ".join(words)


def _way(
    late: Sequence[Done], nothing: Mapping[int, float], exact: Mapping[int, float]
) -> float | None:
    """How far a source goes from no gradient (0) to backprop (1), over the seeds that all have."""
    mine = by_seed(late)
    shared = mine.keys() & nothing.keys() & exact.keys()
    if not shared or any(found.final is None for found in late):
        return None
    ours, none, best = (mean(each[seed] for seed in shared) for each in (mine, nothing, exact))
    return (ours - none) / (best - none) if better(late[0].run, best, none) else None


def _lost(runs: Sequence[Done]) -> list[str]:
    return [found.run.key for found in runs if found.final is None]


def _refused(results: Sequence[Result]) -> list[str]:
    """Failed runs by reason: one line for each, with the number of runs and the first."""
    reasons: dict[str, list[Run]] = {}
    for result in results:
        if result.get("error"):
            reasons.setdefault(result["error"], []).append(Run.from_json(result["run"]))
    return [
        f"{reason}: {len(runs)} {'run' if len(runs) == 1 else 'runs'}, such as `{runs[0].key}`"
        for reason, runs in reasons.items()
    ]
