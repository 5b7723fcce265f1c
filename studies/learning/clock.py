"""Part 3: how long each way takes to the quality at which backprop ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf, isinf
from statistics import mean, median

from studies.learning.figures import families_in, family_of
from studies.learning.links import LINKS
from studies.learning.parts import Family
from studies.learning.quality import Done, Figure, by_seed, epochs_to, figure, select
from studies.learning.racing import BUDGETS, TIMED_EPOCHS
from studies.learning.sources import SOURCES

EXACT_WAYS = ("backprop", "ddp", "exact")
WAYS = {
    "backprop": "one core",
    "ddp": "DDP",
    "exact": "1F1B, our exact engine",
    "stale": "late gradients",
    "decoupled": "predicted gradients",
    "local": "no true gradients",
}
# At most this share of the fastest exact way's time.
LINK_GOALS = {"loopback": 0.83, "20ms-1gbit": 0.66}


@dataclass(frozen=True)
class Pace:
    """Seconds of training; the first epoch has what a run begins with, the exact steps too."""

    first_s: float
    epoch_s: float

    def seconds(self, epochs: float) -> float:
        """Of so many epochs."""
        return self.first_s + (epochs - 1) * self.epoch_s


@dataclass(frozen=True)
class Entrant:
    """A way to train one model over one link.

    Attributes:
        way: of `WAYS`.
        source: of gradients.
        window: batches after which true gradients come.
        pace: the median over runs by the engine.
        qualities: by number of epochs, by the reference; a run for each seed.
        epochs: until as good as backprop at its end; infinite: never; None: not known.
        confirmed: a run by the engine to the end.
    """

    way: str
    source: str
    window: int
    pace: Pace
    qualities: dict[int, Figure]
    epochs: float | None
    confirmed: Done | None

    @property
    def words(self) -> str:
        """The way, and where that does not say it the source."""
        title = SOURCES[self.source].title
        return WAYS[self.way] + (f" ({title})" if self.way in ("decoupled", "local") else "")

    @property
    def seconds(self) -> float | None:
        """Until as good as backprop at its end."""
        return None if self.epochs is None else self.pace.seconds(self.epochs)


@dataclass(frozen=True)
class Race:
    """All ways to train one model over one link, by name; backprop needs no link."""

    family: Family
    link: str
    entrants: dict[str, Entrant]

    @property
    def ratio(self) -> float | None:
        """Time of the fastest decoupled way over that of the fastest exact one."""
        exact, ours = self.fastest(exact=True), self.fastest(exact=False)
        if exact is None or ours is None:
            return None
        theirs, mine = exact.seconds, ours.seconds
        return None if theirs is None or mine is None or isinf(mine) else mine / theirs

    @property
    def judged(self) -> bool:
        """Whether it is known of an exact way and of another when they get there, if ever."""
        known = [e for e in self.entrants.values() if e.epochs is not None]
        return {e.way in EXACT_WAYS for e in known} == {True, False}

    def fastest(self, *, exact: bool) -> Entrant | None:
        """The first to get there of the exact ways, or of the others."""
        known = {
            entrant.seconds: entrant
            for entrant in self.entrants.values()
            if (entrant.way in EXACT_WAYS) == exact and entrant.seconds is not None
        }
        return known[min(known)] if known else None


def races(runs: Sequence[Done]) -> Iterator[Race]:
    """What was run against the clock, by model and link."""
    for family in families_in(runs, part="time"):
        here = [found for found in runs if family_of(found.run) == family]
        for link in LINKS:
            entrants = {}
            for way in WAYS:
                own = "loopback" if way == "backprop" else link
                timed = select(here, part="time", way=way, link=own)
                if select(timed, epochs=TIMED_EPOCHS):
                    entrants[way] = _entrant(timed, here)
            if set(entrants) - {"backprop"}:
                yield Race(family, link, entrants)


def trained(runs: Sequence[Done], source: str, window: int) -> dict[int, list[Done]]:
    """The reference's runs of one model with a source, by number of epochs."""
    window = window if SOURCES[source].lateness_matters else 1
    mine = select(runs, stages=2, source=source, window=window, guard=False)
    found = [*select(mine, part="budget"), *select(mine, part="sources")]
    return {
        epochs: select(found, epochs=epochs) for epochs in sorted({f.run.epochs for f in found})
    }


def _entrant(timed: Sequence[Done], runs: Sequence[Done]) -> Entrant:
    """Of one way's runs by the engine, and all runs of the same model."""
    short = [found.result["curve"] for found in select(timed, epochs=TIMED_EPOCHS)]
    pace = Pace(
        median(curve[0]["seconds"] for curve in short),
        median(curve[1]["seconds"] - curve[0]["seconds"] for curve in short),
    )
    run = timed[0].run
    mine = trained(runs, run.source, run.window)
    qualities = {epochs: reached for epochs in mine if (reached := figure(mine[epochs]))}
    whole = [found for found in timed if found.run.epochs != TIMED_EPOCHS]
    needed = _epochs(mine, trained(runs, "exact", 1))
    return Entrant(
        run.way, run.source, run.window, pace, qualities, needed, next(iter(whole), None)
    )


def _epochs(mine: dict[int, list[Done]], exact: dict[int, list[Done]]) -> float | None:
    """After which runs are as good as backprop at its end, the mean over seeds that both have."""
    nominal = round(max(exact, default=0) / max(BUDGETS))
    target = by_seed(exact.get(nominal, []))
    each = {epochs: by_seed(found) for epochs, found in mine.items()}
    each = {epochs: found for epochs, found in each.items() if len(found) == len(mine[epochs])}
    seeds = set(target).intersection(*each.values())
    if set(mine) != set(exact) or not seeds:
        return None
    points = [(epochs, mean(found[s] for s in seeds)) for epochs, found in each.items()]
    model = exact[nominal][0].run
    needed = epochs_to(points, mean(target[s] for s in seeds), model)
    return inf if needed is None else needed
