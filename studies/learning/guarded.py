"""What the guard is worth: runs with one beside the same runs without, and without a gradient."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from statistics import mean
from typing import Any

from dnic.runtime.crossing import auto_warmup_steps
from studies.learning.figures import families_in, family_of, named, quality_words, table
from studies.learning.quality import Done, figure, select
from studies.learning.runs import Run
from studies.learning.sources import SOURCES

COLUMNS = ("model", "K", "source", "no gradient", "without a guard", "with the guard", "predicted")


def guarded(runs: Sequence[Done]) -> Iterator[str]:
    """A table of the runs of part 2 that have a guard.

    Args:
        runs: of part 2.
    """
    watched = select(runs, guard=True)
    if not watched:
        return
    yield "### With the guard"
    yield ""
    yield "Sources that are worse than no gradient without one. Predicted: the part of the steps in"
    yield "which each interface, from the first one on, went on with what its head predicts; in all"
    yield "others it waited for the true gradient."
    yield ""
    rows = []
    families = families_in(watched)
    kinds = {(families.index(family_of(f.run)), f.run.stages, f.run.source) for f in watched}
    order = list(SOURCES)
    for place, stages, source in sorted(kinds, key=lambda k: (k[0], k[1], order.index(k[2]))):
        family = families[place]
        same = [found for found in runs if family_of(found.run) == family]
        same = select(same, stages=stages)
        mine = select(same, source=source, guard=True)
        without = select(same, source=source, guard=False, window=1)
        cells = select(same, source="none"), without, mine
        words = [quality_words(figure(cell), family) for cell in cells]
        title = SOURCES[source].title
        rows.append([named(family), str(stages), title, *words, _shares(mine)])
    yield from table(COLUMNS, rows)
    yield ""


def _shares(runs: Sequence[Done]) -> str:
    every = [predicted_shares(found.run, found.result["turns"]) for found in runs]
    return ", ".join(f"{mean(one[name] for one in every):.0%}" for name in every[0])


def predicted_shares(
    run: Run, turns: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, float]:
    """The part of a run's steps in which each interface went on with predicted gradients.

    Args:
        run: with a guard, and a warm-up of its own accord.
        turns: what the guard of each interface changed, as a run's records have it.
    """
    warm = auto_warmup_steps(run.steps)
    shares = {}
    for name, changed in turns.items():
        # What is let go at its time is no turn.
        let_go = not changed or (changed[0]["regime"] != "predicted" and changed[0]["step"] > warm)
        regimes = [(warm, "predicted")] * let_go
        regimes += [(row["step"], row["regime"]) for row in changed]
        regimes.append((run.steps, ""))
        steps = sum(
            end - begin for (begin, kind), (end, _) in pairwise(regimes) if kind == "predicted"
        )
        shares[name] = steps / run.steps
    return shares
