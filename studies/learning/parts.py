"""The lists of runs of parts 1 and 2 of the study, in the order in which they are done.

Sizes are chosen so that parts 1 and 2 take a working day on two cores (`--estimate` measures). What
does not depend on lateness is run once; what neither a goal nor a default hangs on, and takes long,
with the first seed only; what the residual net's goals hang on with six. Learning rates are those
that `tuning` found best for backprop, the same for every source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from studies.learning.runs import CHARACTER_EPOCH_STEPS, Model, Run

PARTS = ("1", "2", "3")
GRID = (3e-4, 1e-3, 3e-3)
LOWER = (3e-4, 1e-4, 3e-5)
PROBABILITY = 0.2
FAR = 16

# For what a learning rate is found; the deepest model of a family stands for all.
Family = tuple[str, Model, int, int]  # data, model, layers, width
Rate = Callable[[Family], float]


@dataclass(frozen=True)
class Sizes:
    """How large the study is.

    Attributes:
        seeds: of every run.
        more_seeds: of those where the spread over these is as wide as what is asked for.
        epochs: of each model, and of sparse updates, which need more.
        depths: of the paper's connected nets and of its convolutional ones.
        transformers: their depths; the first one is studied in full.
        time_layers, time_width: of the connected net of part 3.
        samples, epoch_steps: as in `Run`.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    more_seeds: tuple[int, ...] = (3, 4, 5)
    connected_epochs: int = 8
    convolutional_epochs: int = 3
    residual_epochs: int = 3
    character_epochs: int = 8
    sparse_epochs: int = 16
    depths: tuple[int, ...] = (3, 4, 5, 6)
    convolutions: tuple[int, ...] = (3, 4)
    transformers: tuple[int, ...] = (4, 6)
    time_layers: int = 7
    time_width: int = 512
    samples: int | None = None
    epoch_steps: int = CHARACTER_EPOCH_STEPS

    def epochs(self, model: Model) -> int:
        """Of backprop's runs, and so of all others."""
        return int(getattr(self, f"{model.removesuffix('s')}_epochs"))

    def run(self, family: Family, **rest: Any) -> Run:
        """A run of a model of a family, as large as all are."""
        data, model, layers, width = family
        given = {"layers": layers, "width": width, "epochs": self.epochs(model)} | rest
        small: dict[str, Any] = {"samples": self.samples, "epoch_steps": self.epoch_steps}
        return Run(data=data, model=model, **(small | given))


FULL = Sizes()
# To see every part work: minutes of data become seconds.
QUICK = Sizes(
    seeds=(0,),
    more_seeds=(),
    connected_epochs=1,
    convolutional_epochs=1,
    residual_epochs=1,
    character_epochs=1,
    sparse_epochs=1,
    depths=(3,),
    convolutions=(3,),
    transformers=(4,),
    time_layers=3,
    time_width=64,
    samples=512,
    epoch_steps=4,
)

# Sources and their latenesses at each (model, stages) of part 2, the first one of a model in full.
# A source whose gradients cannot be late has one entry.
Wanted = Mapping[str, tuple[int, ...]]
FULL_SET: Wanted = {
    **dict.fromkeys(("none", "local", "local-hidden", "dni", "dni-hidden", "cdni-hidden"), (1,)),
    "virtual-task-hidden": (1,),
    **dict.fromkeys(("cdni", "virtual-task", "stale"), (1, 4, FAR)),
    "stale-weights": (1, 2, 4, FAR),
    "begun": (1, 2, 4, FAR),
    "virtual": (1, FAR),
}
# Of several cuts.
CHAIN_SET: Wanted = {
    **FULL_SET,
    "turns": (1,),
    "turns-hidden": (1, 2, 4, FAR),
}
SMALL_SET: Wanted = {
    **dict.fromkeys(("none", "local", "local-hidden", "virtual", "virtual-task-hidden"), (1,)),
    **dict.fromkeys(("cdni", "virtual-task", "stale", "stale-weights"), (1, FAR)),
    "turns": (1,),
    "turns-hidden": (1, 2, 4, FAR),
}
# Models of which a run takes minutes: fewer in between.
MAPS_SET: Wanted = {
    **dict.fromkeys(("none", "local", "local-hidden", "dni", "cdni-hidden", "virtual"), (1,)),
    "virtual-task-hidden": (1,),
    **dict.fromkeys(("virtual-task", "stale"), (1, 4, FAR)),
    "cdni": (1, FAR),
    "stale-weights": (1, 2, FAR),
    "begun": (2, 4),
}
TEXT_SET: Wanted = {
    **dict.fromkeys(("none", "local", "local-hidden", "dni-hidden", "cdni-hidden"), (1,)),
    "virtual": (1,),
    **dict.fromkeys(("virtual-task", "stale"), (1, FAR)),
    "stale-weights": (1, 2, FAR),
    "begun": (2, 3),
}
# With the first seed only.
FURTHER_MAPS_SET: Wanted = {
    "dni-hidden": (1,),
    "virtual": (FAR,),
    "cdni": (4,),
    "stale-weights": (4,),
}
FURTHER_SMALL_SET: Wanted = {
    **dict.fromkeys(("dni", "dni-hidden", "cdni-hidden"), (1,)),
    **dict.fromkeys(("cdni", "virtual-task", "stale", "stale-weights"), (4,)),
}
FURTHER_SMALL_TEXT_SET: Wanted = {
    **dict.fromkeys(("virtual", "cdni-hidden"), (1,)),
    **dict.fromkeys(("virtual-task", "stale", "turns"), (4,)),
    "begun": (1, 2),
}
FURTHER_TEXT_SET: Wanted = {
    **dict.fromkeys(("cdni", "virtual-task-hidden"), (1,)),
    **dict.fromkeys(("virtual-task", "stale"), (4,)),
    "begun": (1, 8, FAR),
}
SMALL_TEXT_SET: Wanted = {
    **dict.fromkeys(("none", "local", "local-hidden"), (1,)),
    **dict.fromkeys(("virtual-task", "stale", "stale-weights"), (1, FAR)),
    "turns": (1, 2, FAR),
    "turns-hidden": (1,),
}
# What is best in the first transformer, in a deeper one, by stages.
DEEP_SETS: Mapping[int, Wanted] = {2: {"stale-weights": (1,)}, 4: {"turns": (1,)}}
# Of the residual net, by stages: with more seeds.
CLOSE: Mapping[int, Wanted] = {
    2: dict.fromkeys(("local-hidden", "stale-weights"), (1,)),
    4: dict.fromkeys(("local-hidden", "stale-weights", "turns", "turns-hidden"), (1,)),
    6: {**dict.fromkeys(("local-hidden", "turns"), (1,)), "turns-hidden": (1, 2)},
}
# Without warming up; late gradients begin in time otherwise. With the first seed only, but for the
# residual net, where it is not clear which is better.
COLD: Mapping[Model, tuple[tuple[int, str], ...]] = {
    "connected": ((2, "stale-weights"), (6, "stale-weights"), (6, "turns")),
    "residual": (
        (2, "stale-weights"),
        (4, "turns-hidden"),
        *((6, source) for source in ("stale-weights", "turns", "turns-hidden")),
    ),
    "characters": ((2, "stale-weights"), (4, "stale-weights"), (4, "turns")),
}
# With the guard: stages and sources that are worse than no gradient without one, or nearly.
GUARDED: Mapping[Model, tuple[tuple[int, tuple[str, ...]], ...]] = {
    "connected": ((2, ("dni", "dni-hidden")),),
    "residual": (
        (2, ("dni", "cdni", "virtual")),
        *((stages, ("cdni", "virtual", "virtual-task")) for stages in (4, 6)),
    ),
    "characters": ((2, ("dni-hidden", "cdni-hidden")),),
}


def tuning(sizes: Sizes, families: Iterable[Family]) -> Iterator[Run]:
    """Backprop at each learning rate of the grid, on training data alone."""
    for family in families:
        for lr in GRID:
            yield sizes.run(
                family, part="tuning", stages=2, source="exact", window=1, lr=lr, seed=0
            )


def tuned_as(run: Run, sizes: Sizes) -> Family:
    """The family whose learning rate a run has: of the same model at its usual depth."""
    layers = {
        "connected": max(sizes.depths) if run.width != sizes.time_width else sizes.time_layers,
        "convolutional": max(sizes.convolutions),
        "residual": residual()[2],
        "characters": transformer(sizes)[2],
    }
    return run.data, run.model, layers[run.model], run.width


def wide(sizes: Sizes) -> Family:
    """The connected net of part 3, where a step of part 2's is too short to be worth a message.

    Its middle parts the work in two, about: the first layer has more inputs than the others and
    sends no gradient further down, and the last one, the classifier, is small.
    """
    return "fashion", "connected", sizes.time_layers, sizes.time_width


def _deepest(sizes: Sizes) -> tuple[tuple[Model, int], ...]:
    return ("connected", max(sizes.depths)), ("convolutional", max(sizes.convolutions))


def residual() -> Family:
    """Six blocks on Fashion-MNIST."""
    return "fashion", "residual", 6, 256


def transformer(sizes: Sizes) -> Family:
    """The transformer that is studied in full."""
    return "text", "characters", sizes.transformers[0], 256


def paper(sizes: Sizes, rate: Rate) -> Iterator[Run]:
    """Part 1: every layer decoupled, no warm-up, as in the paper."""
    for data in ("mnist", "fashion"):
        for model, deepest in _deepest(sizes):
            lr = rate((data, model, deepest, 256))
            depths = sizes.depths if model == "connected" else sizes.convolutions
            for seed in sizes.seeds:
                for layers in depths:
                    for source in ("exact", "none", "dni", "cdni"):
                        yield sizes.run(
                            (data, model, layers, 256),
                            part="paper",
                            stages=layers,
                            source=source,
                            window=1,
                            lr=lr,
                            seed=seed,
                            warmup_steps=0,
                        )
        yield from _sparse(sizes, data, rate((data, "connected", max(sizes.depths), 256)))


def rates(sizes: Sizes) -> Iterator[Run]:
    """The paper's shallowest and deepest nets at rates below backprop's best, one seed.

    The paper trains for much longer at a lower rate: do heads without context want that?
    """
    for layers in dict.fromkeys((min(sizes.depths), max(sizes.depths))):
        for lr in LOWER:
            for source in ("exact", "none", "dni", "dni-hidden", "cdni"):
                yield sizes.run(
                    ("mnist", "connected", layers, 256),
                    part="rates",
                    stages=layers,
                    source=source,
                    window=1,
                    lr=lr,
                    seed=sizes.seeds[0],
                    warmup_steps=0,
                )


def _sparse(sizes: Sizes, data: str, lr: float) -> Iterator[Run]:
    """Each layer updates with a probability of 0.2; more epochs, as there are fewer updates."""
    layers = max(sizes.depths)
    for seed in sizes.seeds:
        for source in ("dni", "cdni"):
            yield sizes.run(
                (data, "connected", layers, 256),
                part="paper",
                stages=layers,
                source=source,
                window=1,
                lr=lr,
                seed=seed,
                warmup_steps=0,
                epochs=sizes.sparse_epochs,
                update_probability=PROBABILITY,
            )


def sources(sizes: Sizes, rate: Rate) -> Iterator[Run]:
    """Part 2: every source at several numbers of stages and latenesses."""
    connected: Family = ("fashion", "connected", max(sizes.depths), 256)
    whole = transformer(sizes)
    cells: list[tuple[Family, int, Wanted]] = [
        (connected, 2, FULL_SET),
        *((connected, stages, CHAIN_SET) for stages in (4, 6) if stages <= connected[2]),
        (residual(), 2, MAPS_SET),
        *((residual(), stages, SMALL_SET) for stages in (4, 6)),
        (whole, 2, TEXT_SET),
        (whole, 4, SMALL_TEXT_SET),
    ]
    for layers in sizes.transformers[1:]:
        deep: Family = ("text", "characters", layers, 256)
        cells += [(deep, stages, wanted) for stages, wanted in DEEP_SETS.items()]
    further: list[tuple[Family, int, Wanted]] = [
        (residual(), 2, FURTHER_MAPS_SET),
        *((residual(), stages, FURTHER_SMALL_SET) for stages in (4, 6)),
        (whole, 2, FURTHER_TEXT_SET),
        (whole, 4, FURTHER_SMALL_TEXT_SET),
    ]
    for seed in sizes.seeds:
        yield from _of_cells(sizes, cells, rate, seed)
        for family in (connected, residual(), whole):
            yield from _guarded(sizes, family, rate, seed)
    close = [(residual(), stages, wanted) for stages, wanted in CLOSE.items()]
    for seed in sizes.more_seeds:
        yield from _of_cells(sizes, close, rate, seed)
    yield from _of_cells(sizes, further, rate, sizes.seeds[0])


def _of_cells(
    sizes: Sizes, cells: Iterable[tuple[Family, int, Wanted]], rate: Rate, seed: int
) -> Iterator[Run]:
    """Backprop of every model, then its sources."""
    seen: set[Family] = set()
    for family, stages, wanted in cells:
        common = _common(sizes, family, rate, seed)
        if family not in seen:
            seen.add(family)
            yield sizes.run(family, stages=2, source="exact", window=1, **common)
        for source, windows in wanted.items():
            for window in windows:
                yield sizes.run(family, stages=stages, source=source, window=window, **common)


def _common(sizes: Sizes, family: Family, rate: Rate, seed: int) -> dict[str, Any]:
    # The depths of the transformer share a learning rate.
    tuned = transformer(sizes) if family[1] == "characters" else family
    return {"part": "sources", "lr": rate(tuned), "seed": seed}


def _guarded(sizes: Sizes, family: Family, rate: Rate, seed: int) -> Iterator[Run]:
    """Sources that can be worse than nothing, with the guard."""
    common = _common(sizes, family, rate, seed)
    for stages, sources in GUARDED[family[1]]:
        for source in sources:
            yield sizes.run(family, stages=stages, source=source, window=1, guard=True, **common)


def cold(sizes: Sizes, rate: Rate) -> Iterator[Run]:
    """Late gradients from the first step on."""
    connected: Family = ("fashion", "connected", max(sizes.depths), 256)
    for family in (connected, residual(), transformer(sizes)):
        every = (*sizes.seeds, *sizes.more_seeds) if family == residual() else sizes.seeds[:1]
        for stages, source in COLD[family[1]]:
            for seed in every if stages <= family[2] else ():
                given = {"stages": stages, "source": source, "window": 1, "warmup_steps": 0}
                common = _common(sizes, family, rate, seed) | {"part": "cold"}
                yield sizes.run(family, **given, **common)


def chosen(runs: Sequence[Run], only: Sequence[str]) -> list[Run]:
    """Each run once; with `only` those whose key holds one of these words."""
    unique = list(dict.fromkeys(runs))
    return [run for run in unique if not only or any(word in run.key for word in only)]
