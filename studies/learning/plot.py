"""The study's pictures: quality by lateness, by epoch, and by the clock."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, floor, log2
from statistics import mean

from studies.learning.best import of_sources
from studies.learning.clock import WAYS, races
from studies.learning.figures import families_in, named
from studies.learning.goals import backprop
from studies.learning.links import LINKS
from studies.learning.parts import Family
from studies.learning.quality import Done, done, figure, select
from studies.learning.sources import SOURCES
from studies.learning.store import Result
from studies.svg import COLOURS, Axis, Panel, legend, picture

WIDTH, HEIGHT = 300.0, 210.0
LEFT, TOP, ACROSS, DOWN = 72.0, 34.0, 92.0, 82.0
LEGEND_WIDTH = 240.0
COLUMNS = 3
DASHED = "6 4"
MARGIN = 0.04  # of an axis, beyond the best
LATENESS = (1, 4, 16)
# Okabe and Ito's colours; the yellow is too light for a line. Black is backprop.
SHOWN = ("none", "cdni", "virtual-task", "local-hidden", "stale", "stale-weights", "turns-hidden")
INKS = dict(zip(SHOWN, (*COLOURS[:4], *COLOURS[5:]), strict=True)) | {"exact": "#000000"}
WAY_INKS = dict(zip(WAYS, ("#000000", *COLOURS[1:4], *COLOURS[5:7]), strict=True))

Line = tuple[Sequence[tuple[float, float]], str, str]  # points, colour, dash


def pictures(results: Iterable[Result]) -> dict[str, str]:
    """Every picture that there are data for, by its file's name."""
    runs = done(results)
    made = {"lateness.svg": _lateness(runs), "curves.svg": _curves(runs), "clock.svg": _clock(runs)}
    return {name: content for name, content in made.items() if content is not None}


def _lateness(runs: Sequence[Done]) -> str | None:
    """A panel for each model and number of stages, a line for each source; dashed: backprop."""
    panels = []
    for family in families_in(runs, part="sources"):
        for stages in (2, 4, 6):
            here = of_sources(runs, family, stages)
            if any(found.run.source not in ("exact",) for found in here) and stages_shown(here):
                lines = _by_lateness(here, backprop(runs, family))
                axis = Axis("lateness", LATENESS, [(n, str(n)) for n in LATENESS])
                panels.append((f"{_title(family)}, K = {stages}", axis, lines, family))
    return _grid("Quality by lateness and source", panels, _source_legend())


def stages_shown(runs: Sequence[Done]) -> bool:
    """Whether there is more than one lateness to draw a line through."""
    return len({found.run.window for found in runs}) > 1


def _by_lateness(here: Sequence[Done], exact: Sequence[Done]) -> list[Line]:
    lines: list[Line] = []
    for source in SHOWN:
        mine = select(here, source=source)
        windows = sorted({found.run.window for found in mine})
        reached = [(w, figure(select(mine, window=w))) for w in windows]
        points = [(float(w), found.mean) for w, found in reached if found is not None]
        if points and not SOURCES[source].lateness_matters:
            points = [(float(w), points[0][1]) for w in LATENESS]
        if points:
            lines.append((points, INKS[source], ""))
    level = figure(exact)
    if level is not None:
        lines.append(([(float(w), level.mean) for w in LATENESS], INKS["exact"], DASHED))
    return lines


def _curves(runs: Sequence[Done]) -> str | None:
    """A panel for each model in two stages, a line for each source at lateness 1."""
    panels = []
    for family in families_in(runs, part="sources"):
        here = of_sources(runs, family, 2)
        lines: list[Line] = []
        for source in ("exact", *SHOWN):
            points = _mean_curve(select(here, source=source, window=1))
            if len(points) > 1:
                lines.append((points, INKS[source], DASHED if source == "exact" else ""))
        if lines:
            last = max(x for points, _, _ in lines for x, _ in points)
            panels.append((f"{_title(family)}, K = 2", _even("step", 0, last), lines, family))
    return _grid("Quality by step and source, late 1", panels, _source_legend())


def _clock(runs: Sequence[Done]) -> str | None:
    """A panel for each model and link, a line for each way: what seconds of training buy."""
    panels = []
    for race in races(runs):
        lines: list[Line] = []
        for way, entrant in race.entrants.items():
            points = [(entrant.pace.seconds(n), q.mean) for n, q in entrant.qualities.items()]
            if len(points) > 1:
                lines.append((points, WAY_INKS[way], DASHED if way == "backprop" else ""))
        if lines:
            seconds = [x for points, _, _ in lines for x, _ in points]
            axis = _doubling("seconds of training", min(seconds), max(seconds))
            title = f"{_title(race.family)}, {LINKS[race.link].title}"
            panels.append((title, axis, lines, race.family))
    entries = [(WAY_INKS[way], WAYS[way]) for way in WAYS]
    return _grid("Quality by seconds of training", panels, entries)


def _mean_curve(runs: Sequence[Done]) -> list[tuple[float, float]]:
    """A curve over seeds, as far as all of them have one."""
    curves = [found.result["curve"] for found in runs]
    points = []
    for rows in zip(*curves, strict=False):
        if any(row["quality"] is None for row in rows):
            break
        points.append((mean(row["step"] for row in rows), mean(row["quality"] for row in rows)))
    return points


def _grid(
    title: str,
    panels: Sequence[tuple[str, Axis, Sequence[Line], Family]],
    entries: Sequence[tuple[str, str]],
) -> str | None:
    if not panels:
        return None
    parts = []
    for place, (name, axis, lines, family) in enumerate(panels):
        row, column = divmod(place, COLUMNS)
        left, top = LEFT + column * (WIDTH + ACROSS), TOP + row * (HEIGHT + DOWN)
        panel = Panel(left, top, WIDTH, HEIGHT, axis, _quality_axis(lines, family), name)
        for points, colour, dash in lines:
            panel.curve(points, colour, dash)
        parts.append(panel.svg())
    columns, rows = min(len(panels), COLUMNS), -(-len(panels) // COLUMNS)
    right = LEFT + columns * (WIDTH + ACROSS) - ACROSS / 2
    parts.append(legend(right, TOP + 12, "", entries))
    least = TOP + 40 + 19 * len(entries)
    height = max(TOP + rows * (HEIGHT + DOWN), least)
    return picture(right + LEGEND_WIDTH, height, title, parts)


def _quality_axis(lines: Sequence[Line], family: Family) -> Axis:
    """From a little above the best down to where four of five points are within.

    And at least to three times as far below the best as half of all points are. A source that has
    learnt nothing would press all others together; it is drawn at the edge.
    """
    values = sorted(y for points, _, _ in lines for _, y in points)
    worst_first = values if family[1] != "characters" else values[::-1]
    worst, best = worst_first[0], worst_first[-1]
    middle, most = worst_first[len(values) // 2], worst_first[len(values) // 5]
    depth = min(max(3 * abs(best - middle), abs(best - most)), abs(best - worst))
    sign = 1 if family[1] != "characters" else -1
    ends = sorted((best + sign * MARGIN * depth, best - sign * depth))
    return _even(_unit(family), ends[0], ends[1])


def _unit(family: Family) -> str:
    return "bits per character" if family[1] == "characters" else "accuracy, %"


def _even(label: str, low: float, high: float) -> Axis:
    """An axis with four or five round ticks, about."""
    span = (high - low) or 1.0
    high = low + span
    step = _round_step(span / 5)
    first = -int(-low // step)
    count = int((high - first * step) / step + 1e-9) + 1
    ticks = [(first + n) * step for n in range(count)]
    return Axis(label, (low, high), [(tick, f"{tick:g}") for tick in map(_clean, ticks)], even=True)


def _doubling(label: str, low: float, high: float) -> Axis:
    """A logarithmic axis from 10, 20, 40, ... or 5, ... to one of these."""
    first, last = floor(log2(low / 10)), ceil(log2(high / 10))
    ticks = [10.0 * 2**n for n in range(first, last + 1)]
    return Axis(label, ticks, [(tick, f"{tick:g}") for tick in ticks])


def _clean(value: float) -> float:
    return float(f"{value:.6g}")


def _round_step(rough: float) -> float:
    """The next larger of 1, 2, 5 times a power of ten."""
    power = 10.0 ** (len(str(int(rough))) - 1) if rough >= 1 else 1.0
    while power > rough:
        power /= 10
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)


def _title(family: Family) -> str:
    return named(family).replace("Fashion-MNIST, ", "").replace("MNIST, ", "")


def _source_legend() -> list[tuple[str, str]]:
    return [(INKS["exact"], "backprop (dashed)")] + [
        (INKS[source], SOURCES[source].title) for source in SHOWN
    ]
