"""The lists of runs of part 3: every way to train, over every link, to backprop's quality.

Speed and quality are found apart. The engine is timed for two epochs of every way. The reference
trains for half, as many, and half as many epochs again as part 2, each to the end of a cosine of
its own; the exact ways all have backprop's. A curve at a constant rate would need one run only, but
from epoch to epoch it goes up and down by more than it rises.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

from dnic.partition.alternating import MOST_LATE_EXACT
from dnic.runtime.crossing import auto_warmup_steps
from studies.learning.parts import FAR, Family, Rate, Sizes, sources, transformer, wide
from studies.learning.runs import Run
from studies.learning.sources import SOURCES

Best = Callable[[Family, int | None], str | None]

# Epochs of the reference over those of part 2, and epochs of the engine.
BUDGETS = (0.5, 1.0, 1.5)
TIMED_EPOCHS = 2
# Batches after which a true gradient comes in part 3, as `dnic plan` has it for these links:
# one that is used late, and one that trains a head.
WINDOWS: Mapping[str, Mapping[str, Mapping[str, int]]] = {
    "loopback": {
        "connected": {"stale": 1, "decoupled": 2},
        "characters": {"stale": 1, "decoupled": 2},
    },
    "20ms-1gbit": {
        "connected": {"stale": 4, "decoupled": 4},
        "characters": {"stale": 3, "decoupled": 3},
    },
}


def speeds(sizes: Sizes, rate: Rate, best: Best) -> Iterator[Run]:
    """Part 3, by the engine: how fast every way is, over every link; each seed measures it again.

    With the first seed, ways that are not exact also train to the end: what the reference found and
    the speed foretell is to come true.
    """
    for seed in sizes.seeds:
        for run in _raced(sizes, rate, best, seed):
            source = SOURCES[run.source]
            # As long as it is in a run to the end; half of a run stays half of it.
            whole = source.lateness_matters and "warmup" not in source.interface
            warmup = auto_warmup_steps(run.steps) if whole else None
            yield replace(run, epochs=TIMED_EPOCHS, warmup_steps=warmup)
    for run in _raced(sizes, rate, best, sizes.seeds[0]):
        if SOURCES[run.source].gradient != "exact":
            yield run


def budgets(sizes: Sizes, rate: Rate, best: Best) -> Iterator[Run]:
    """Part 3, by the reference: the quality of every way after several numbers of epochs.

    What part 2 has is not done again.
    """
    known = set(sources(sizes, rate))
    for seed in sizes.seeds:
        for run in _raced(sizes, rate, best, seed):
            for share in BUDGETS:
                trained = replace(
                    run,
                    part="budget",
                    way="reference",
                    link="loopback",
                    window=run.window if SOURCES[run.source].lateness_matters else 1,
                    epochs=max(1, round(share * run.epochs)),
                )
                same = replace(trained, part="sources")
                yield same if same in known else trained


def _raced(sizes: Sizes, rate: Rate, best: Best, seed: int) -> Iterator[Run]:
    """Every way to train, over every link, as long as in part 2.

    `best(family, lateness)` is the best head of part 2, with a lateness of None the best that needs
    no true gradient; None leaves it out.
    """
    large = wide(sizes)
    narrow: Family = (*large[:2], max(sizes.depths), 256)
    for family, studied in ((large, narrow), (transformer(sizes),) * 2):
        run = sizes.run(
            family,
            part="time",
            stages=2,
            source="exact",
            window=1,
            lr=rate(family),
            seed=seed,
            way="backprop",
        )
        yield run
        for link, lateness in (("loopback", 1), ("20ms-1gbit", FAR)):
            here = replace(run, link=link)
            windows = WINDOWS[link][run.model]
            yield replace(here, way="ddp")
            yield replace(here, way="exact")
            late = "stale-weights" if windows["stale"] <= MOST_LATE_EXACT else "begun"
            yield replace(here, way="stale", source=late, window=windows["stale"])
            source, alone = best(studied, lateness), best(studied, None)
            if source is not None:
                yield replace(here, way="decoupled", source=source, window=windows["decoupled"])
            if alone is not None and alone != source:
                yield replace(here, way="local", source=alone, window=windows["decoupled"])
