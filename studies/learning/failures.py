"""What did not work, found in the data: no run that disappoints is left out because it does."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from studies.learning.best import of_sources
from studies.learning.figures import families_in, named, quality_words
from studies.learning.goals import backprop, missed
from studies.learning.parts import Family
from studies.learning.quality import Done, better, cosine, done, figure, select, shortfall
from studies.learning.runs import Run
from studies.learning.sources import LATE, SOURCES
from studies.learning.store import Result

HIGH_COSINE = 0.5
LITTLE = 0.5  # of the way from no gradient to backprop


def failures(results: Sequence[Result]) -> Iterator[str]:
    """Lists, each with what it is a list of; an empty one says so."""
    runs = done(results)
    cells = list(_cells(runs))
    yield from _listed("Goals missed", missed(runs))
    yield from _listed(
        "Sources that learn less than no gradient at all", _below_nothing(runs, cells)
    )
    yield from _listed(
        f"Heads with a cosine of {HIGH_COSINE:g} or more that go less than half of the way from no "
        "gradient to backprop",
        _high_cosine(runs, cells),
    )
    yield from _listed("Stale gradients that cost more than half of that way", _late(runs, cells))
    yield from _listed("Runs whose loss was no number at the end", _lost(runs))
    yield from _listed("Runs that could not be done", _refused(results))


def _listed(title: str, lines: Sequence[str]) -> Iterator[str]:
    yield f"{title}:" if lines else f"{title}: none."
    yield ""
    yield from (f"- {line}" for line in lines)
    if lines:
        yield ""


Cell = tuple[Family, int, str, int, list[Done]]  # family, stages, source, window, runs


def _cells(runs: Sequence[Done]) -> Iterator[Cell]:
    """What was run of part 2, but for backprop and no gradient."""
    for family in families_in(runs, part="sources"):
        for stages in (2, 4, 6):
            here = of_sources(runs, family, stages)
            for source in SOURCES:
                mine = select(here, source=source)
                for window in sorted({found.run.window for found in mine}):
                    if source not in ("exact", "none"):
                        yield family, stages, source, window, select(mine, window=window)


def _where(cell: Cell) -> str:
    family, stages, source, window, _ = cell
    return f"{named(family)}, K = {stages}, {SOURCES[source].title}, late {window}"


def _below_nothing(runs: Sequence[Done], cells: Sequence[Cell]) -> list[str]:
    lines = []
    for cell in cells:
        family, stages, _, _, mine = cell
        nothing = figure(select(of_sources(runs, family, stages), source="none"))
        reached = figure(mine)
        if nothing and reached and better(mine[0].run, nothing.mean, reached.mean):
            words = quality_words(reached, family), quality_words(nothing, family)
            lines.append(f"{_where(cell)}: {words[0]} against {words[1]}")
    return lines


def _way(runs: Sequence[Done], cell: Cell) -> float | None:
    """How far a source goes from no gradient (0) to backprop (1)."""
    family, stages, _, _, mine = cell
    nothing = select(of_sources(runs, family, stages), source="none")
    exact = backprop(runs, family)
    if not nothing or not exact:
        return None
    whole, left = shortfall(nothing, exact), shortfall(mine, exact)
    if whole is None or left is None or whole <= 0:
        return None
    return 1 - left / whole


def _high_cosine(runs: Sequence[Done], cells: Sequence[Cell]) -> list[str]:
    lines = []
    for cell in cells:
        known = [value for found in cell[4] if (value := cosine(found)) is not None]
        way = _way(runs, cell)
        if known and way is not None and mean(known) >= HIGH_COSINE and way < LITTLE:
            lines.append(f"{_where(cell)}: cosine {mean(known):.2f}, {way:.0%} of the way")
    return lines


def _late(runs: Sequence[Done], cells: Sequence[Cell]) -> list[str]:
    lines = []
    for cell in cells:
        way = _way(runs, cell)
        if cell[2] in LATE and cell[3] > 1 and way is not None and way < LITTLE:
            lines.append(f"{_where(cell)}: {way:.0%} of the way")
    return lines


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
