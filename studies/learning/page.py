"""The study as a page for people: goals, the paper's tables, sources, time, what did not work.

Everything is computed from the store. Words that only a person can find are in
`docs/learning/notes.md`, which is put in where it stands.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from math import isfinite
from pathlib import Path

from studies.learning.clock import Entrant, Race, races
from studies.learning.failures import failures
from studies.learning.figures import (
    NONE,
    error_words,
    families_in,
    family_of,
    named,
    quality_words,
    short_words,
    source_title,
    table,
)
from studies.learning.goals import backprop, goals
from studies.learning.guarded import guarded
from studies.learning.links import LINKS
from studies.learning.parts import GRID, PROBABILITY, Family
from studies.learning.quality import Done, cosine, done, explained, figure, select, shortfall
from studies.learning.sources import SOURCES
from studies.learning.store import Result
from studies.learning.tuned import rates, tuned_rate
from studies.process import ROOT

NOTES = ROOT / "docs" / "learning" / "notes.md"
TIME_COLUMNS = (
    "way",
    "late",
    "seconds an epoch",
    "epochs needed",
    "to backprop's quality",
    "over one core",
    "to the end",
)
LEGEND = """\
AdamW for all; the learning rate is the one at which backprop is best on a held-out part of the
training set, and falls to nearly nothing along a cosine. Equal epochs or steps for all sources;
heads and tails have an Adam of their own at 0.001. Mean ± standard deviation over
the seeds, on the test set after the last step. K: stages. Late n: a true gradient reaches the head
(or the stage, where it is stale) n batches later; with several stages, stale gradients add up.
Explained share: 1 - ||predicted - true||^2 / ||true||^2; below 0, zero would have been closer.
Images: accuracy in percent, more is better; text: bits per character, less is better. Parts 1 and
2 are by the single-process reference, which computes what the engine computes, bit for bit.
"""


def page(results: Iterable[Result], notes: Path = NOTES) -> str:
    """The study as Markdown.

    Args:
        results: of the store.
        notes: text that is put in; none where there is no such file.
    """
    found = list(results)
    runs = done(found)
    lines = ["# Learning", "", *_made_with(found), "", *LEGEND.splitlines(), ""]
    if notes.is_file():
        lines += [notes.read_text("utf-8").strip(), ""]
    judged = [[what, goal, said.replace("; ", "<br>")] for what, goal, said in goals(runs)]
    lines += ["## Goals", "", *table(("what", "goal", "measured"), judged), ""]
    lines += ["## 1. The paper's tables", "", *_paper(runs)]
    lines += ["## 2. Sources", "", *_sources(runs)]
    lines += ["## 3. Time to quality", "", *_time(runs)]
    lines += ["## 4. What did not work", "", *failures(found), ""]
    lines += ["## Learning rates", "", *_rates(found, runs), ""]
    return "\n".join(lines)


def _made_with(results: Sequence[Result]) -> Iterator[str]:
    if not results:
        yield "Not run yet: `make study`."
        return
    versions = {tuple(result["versions"].items()) for result in results}
    words = ["; ".join(", ".join(f"{n} {v}" for n, v in each) for each in sorted(versions))]
    dates = sorted({result["date"] for result in results})
    words.append(dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}")
    seeds = sorted({result["run"]["seed"] for result in results})
    words.append(f"seeds {', '.join(map(str, seeds))}")
    hours = sum(result["seconds"] for result in results) / 3600
    words.append(f"{len(results)} runs, {hours:.1f} hours of them")
    yield "`make study`, which goes on where it was left; the data are in"
    yield "[`learning/runs.jsonl`](learning/runs.jsonl), a line for each run, by these commands:"
    yield ""
    yield from (f"    {command}" for command in sorted({r["command"] for r in results}))
    yield ""
    yield f"{'; '.join(words)}."


def _paper(runs: Sequence[Done]) -> Iterator[str]:
    here = select(runs, part="paper")
    yield "Every layer is a stage; no warm-up; linear heads. Test error in percent, as in Jaderberg"
    yield "et al. 2016 (arXiv 1608.05343), table 1: no backprop means that no gradient crosses"
    yield "between layers. Each layer's gradient comes one update late."
    yield ""
    ordinary = [found for found in here if found.run.update_probability == 1]
    columns = ("none", "exact", "dni", "cdni")
    rows = [
        [
            named(family),
            *_errors(_of(ordinary, family), columns),
        ]
        for family in families_in(ordinary)
    ]
    yield from table(("model", "no backprop", "backprop", "DNI", "cDNI"), rows)
    yield ""
    sparse = [found for found in here if found.run.update_probability < 1]
    yield f"Sparse updates: each layer updates in a step with probability {PROBABILITY}, by itself."
    yield ""
    rows = [
        [
            named(family),
            str(_of(sparse, family)[0].run.epochs),
            *_errors(_of(sparse, family), ("dni", "cdni")),
        ]
        for family in families_in(sparse)
    ]
    yield from table(("model", "epochs", "DNI", "cDNI"), rows)
    yield ""
    yield from _lower(select(runs, part="rates"))


def _lower(here: Sequence[Done]) -> Iterator[str]:
    if not here:
        return
    yield "At lower learning rates than backprop's best, one seed, as many epochs as above:"
    yield ""
    columns = ("none", "exact", "dni", "dni-hidden", "cdni")
    rows = [
        [
            named(family),
            f"{lr:g}",
            *_errors(select(_of(here, family), lr=lr), columns),
        ]
        for family in families_in(here)
        for lr in sorted({found.run.lr for found in here}, reverse=True)
    ]
    titles = ("no backprop", "backprop", "DNI", "DNI, hidden layer", "cDNI")
    yield from table(("model", "learning rate", *titles), rows)
    yield ""


def _errors(runs: Sequence[Done], sources: Sequence[str]) -> Iterator[str]:
    return (error_words(figure(select(runs, source=source))) for source in sources)


def _of(runs: Sequence[Done], family: Family) -> list[Done]:
    return [found for found in runs if family_of(found.run) == family]


def _sources(runs: Sequence[Done]) -> Iterator[str]:
    here = select(runs, part="sources")
    families = families_in(here)
    if families:
        yield "![Quality by lateness and source](learning/lateness.svg)"
        yield ""
        yield "![Quality by epoch and source, two stages](learning/curves.svg)"
        yield ""
    for family in families:
        cells = _of(here, family)
        exact = backprop(runs, family)
        reached = quality_words(figure(exact), family)
        steps = f"{exact[0].run.steps:,} steps" if exact else "steps unknown"
        yield f"### {named(family)}"
        yield ""
        yield f"Backprop: **{reached}** ({steps})."
        yield ""
        yield from _quality_table(cells, family, exact)
        yield ""
        yield from _prediction_table(cells)
    yield from guarded(here)
    yield from _cold(select(runs, part="cold"), here)


def _cold(without: Sequence[Done], warmed: Sequence[Done]) -> Iterator[str]:
    if not without:
        return
    yield "### Late gradients from the first step on"
    yield ""
    yield (
        "Elsewhere a run is exact for its first 5 % of steps, at most 200. The same seeds, late 1."
    )
    yield ""
    rows = []
    alike = {(family_of(found.run), found.run.stages, found.run.source): None for found in without}
    for family, stages, source in alike:
        same = {"stages": stages, "source": source, "window": 1}
        cold = select(_of(without, family), **same)
        seeds = {found.run.seed for found in cold}
        begun = select(_of(warmed, family), guard=False, **same)
        cells = cold, [found for found in begun if found.run.seed in seeds]
        words = [quality_words(figure(cell), family) for cell in cells]
        rows.append([named(family), str(stages), source_title(cold[0].run), *words])
    columns = ("model", "K", "source", "from the first step on", "begun in time")
    yield from table(columns, rows)
    yield ""


def _columns(runs: Sequence[Done]) -> list[tuple[int, int]]:
    return sorted({(found.run.stages, found.run.window) for found in runs})


def _rows(runs: Sequence[Done]) -> list[tuple[str, bool]]:
    """Sources and whether they had a guard, in the order of the sources."""
    present = {(found.run.source, found.run.guard) for found in runs}
    return [(s, g) for s in SOURCES for g in (False, True) if (s, g) in present and s != "exact"]


def _quality_table(runs: Sequence[Done], family: Family, exact: Sequence[Done]) -> Iterator[str]:
    columns = _columns(runs)
    rows = []
    for source, guard in _rows(runs):
        mine = select(runs, source=source, guard=guard)
        cells = [select(mine, stages=stages, window=window) for stages, window in columns]
        words = [_quality_cell(cell, family, exact) for cell in cells]
        rows.append([source_title(mine[0].run), *words])
    head = [f"K = {stages}, late {window}" for stages, window in columns]
    yield from table(("source", *head), rows)
    yield ""
    yield "In brackets: worse than backprop by so much. What cannot be late stands under late 1."


def _quality_cell(cell: Sequence[Done], family: Family, exact: Sequence[Done]) -> str:
    reached = figure(cell)
    if reached is None:
        return NONE if not cell else "lost"
    short = shortfall(cell, exact)
    words = quality_words(reached, family)
    return words if short is None else f"{words} ({short_words(short, family)})"


def _prediction_table(runs: Sequence[Done]) -> Iterator[str]:
    columns = _columns(runs)
    rows = []
    for source, guard in _rows(runs):
        mine = select(runs, source=source, guard=guard)
        cells = [select(mine, stages=stages, window=window) for stages, window in columns]
        words = [_prediction_cell(cell) for cell in cells]
        if any(word != NONE for word in words):
            rows.append([source_title(mine[0].run), *words])
    if rows:
        yield "How good the predictions were at the end (cosine / explained share):"
        yield ""
        head = [f"K = {stages}, late {window}" for stages, window in columns]
        yield from table(("source", *head), rows)
        yield ""


def _prediction_cell(cell: Sequence[Done]) -> str:
    pairs = [(cosine(found), explained(found)) for found in cell]
    known = [(c, e) for c, e in pairs if c is not None and e is not None]
    if not known:
        return NONE
    means = [sum(values) / len(known) for values in zip(*known, strict=True)]
    return f"{means[0]:.2f} / {means[1]:.2f}"


def _time(runs: Sequence[Done]) -> Iterator[str]:
    yield "How many seconds of training does backprop's quality cost? The epochs that a way needs"
    yield "are found by the reference, with a run for each number of epochs, each to the end of its"
    yield "cosine; between them they are interpolated. Exact ways need what backprop needs. The"
    yield "seconds of an epoch are the engine's: two processes, a core and a thread each (one core:"
    yield "backprop in one process), evaluations left out, the median of a run for each seed. To"
    yield "the end: quality and seconds of the engine itself after as many epochs as in part 2."
    yield ""
    found = list(races(runs))
    if any(len(e.qualities) > 1 for race in found for e in race.entrants.values()):
        yield "![Quality by seconds of training](learning/clock.svg)"
        yield ""
    for family in dict.fromkeys(race.family for race in found):
        here = [race for race in found if race.family == family]
        yield f"### {named(family)}"
        yield ""
        yield from _budget_table([e for race in here for e in race.entrants.values()], family)
        yield ""
        for race in here:
            yield f"{LINKS[race.link].title}:"
            yield ""
            yield from table(TIME_COLUMNS, [_time_row(e, race) for e in race.entrants.values()])
            yield ""


def _budget_table(entrants: Iterable[Entrant], family: Family) -> Iterator[str]:
    rows = {_learnt(entrant): entrant.qualities for entrant in entrants}
    columns = sorted({epochs for qualities in rows.values() for epochs in qualities})
    yield from table(
        ("epochs", *map(str, columns)),
        [
            [title, *(quality_words(qualities.get(epochs), family) for epochs in columns)]
            for title, qualities in rows.items()
        ],
    )


def _learnt(entrant: Entrant) -> str:
    source = SOURCES[entrant.source]
    return source.title + (f", late {entrant.window}" if source.lateness_matters else "")


def _time_row(entrant: Entrant, race: Race) -> list[str]:
    source, seconds = SOURCES[entrant.source], entrant.seconds
    one = race.entrants["backprop"].seconds if "backprop" in race.entrants else None
    whole = NONE
    if entrant.confirmed is not None:
        last = entrant.confirmed.result["curve"][-1]
        whole = f"{quality_words(figure([entrant.confirmed]), race.family)} in "
        whole += f"{last['seconds']:.3g} s ({entrant.pace.seconds(last['epoch']):.3g} foretold)"
    return [
        entrant.words,
        str(entrant.window) if source.lateness_matters else NONE,
        f"{entrant.pace.epoch_s:.3g}",
        _known(entrant.epochs, "{:.1f}"),
        _known(seconds, "{:.3g} s"),
        _known(seconds / one if seconds and one else None, "{:.2f}"),
        whole,
    ]


def _known(value: float | None, words: str) -> str:
    if value is None:
        return NONE
    return words.format(value) if isfinite(value) else "never"


def _rates(results: Sequence[Result], runs: Sequence[Done]) -> Iterator[str]:
    yield "Backprop's quality on held-out training data after the same epochs, one seed; the best"
    yield "rate (bold) is kept for every source and depth."
    yield ""
    rows = []
    for family in families_in(runs, part="tuning"):
        tried, chosen = rates(results, family), tuned_rate(results, family)
        words = [f"{tried[rate]:.3f}" if rate in tried else NONE for rate in GRID]
        best = [f"**{w}**" if r == chosen else w for r, w in zip(GRID, words, strict=True)]
        rows.append([named(family), *best])
    yield from table(("model", *(f"{rate:g}" for rate in GRID)), rows)
