"""Part 3: how long each way takes to the quality at which backprop ends."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

from studies.learning.figures import families_in
from studies.learning.links import LINKS
from studies.learning.parts import TIME_FACTOR, Family
from studies.learning.quality import Done, select, smoothed, time_to

EXACT_WAYS = ("backprop", "ddp", "exact")
WAYS = {
    "backprop": "one core",
    "ddp": "DDP",
    "exact": "1F1B, our exact engine",
    "stale": "late gradients",
    "decoupled": "predicted gradients",
}
# At most this share of the fastest exact way's time.
LINK_GOALS = {"loopback": 0.83, "20ms-1gbit": 0.66}


@dataclass(frozen=True)
class Race:
    """All ways to train one model over one link.

    Attributes:
        family: the model.
        link: of `LINKS`.
        runs: by way; backprop's have no link.
        seconds: to the quality of backprop's end, the median over seeds; None where a seed never
            got there.
    """

    family: Family
    link: str
    runs: dict[str, list[Done]]
    seconds: dict[str, float | None]

    @property
    def ratio(self) -> float | None:
        """Time of the fastest decoupled way over that of the fastest exact one."""
        exact = [s for way, s in self.seconds.items() if way in EXACT_WAYS and s is not None]
        ours = [s for way, s in self.seconds.items() if way not in EXACT_WAYS and s is not None]
        return min(ours) / min(exact) if ours and exact else None


def races(runs: Sequence[Done]) -> Iterator[Race]:
    """What was run against the clock, by model and link."""
    for family in families_in(runs, part="time"):
        data, model, layers, width = family
        here = select(runs, part="time", data=data, model=model, layers=layers, width=width)
        targets = {
            found.run.seed: reached
            for found in select(here, way="backprop")
            if (reached := target(found)) is not None
        }
        for link in LINKS:
            found = {
                way: select(here, way=way, link="loopback" if way == "backprop" else link)
                for way in WAYS
            }
            found = {way: listed for way, listed in found.items() if listed}
            if set(found) - {"backprop"}:
                seconds = {way: _median(listed, targets) for way, listed in found.items()}
                yield Race(family, link, found, seconds)


def target(found: Done) -> float | None:
    """The smoothed quality of a run of backprop after as many epochs as it has in part 2."""
    points = smoothed(found.result["curve"])
    nominal = max(1, round(found.run.epochs / TIME_FACTOR))
    return points[nominal - 1][1] if len(points) >= nominal else None


def _median(runs: Sequence[Done], targets: dict[int, float]) -> float | None:
    times = [time_to(found, targets[found.run.seed]) for found in runs if found.run.seed in targets]
    if not times or None in times:
        return None
    return median(seconds for seconds in times if seconds is not None)
