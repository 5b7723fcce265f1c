"""The bench as a picture: a panel for each model, a group of bars for each link."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from studies.benching_page import NAMES, TITLES, best
from studies.svg import COLOURS, INK, legend, line, picture, text

# The best of each, its name and its colour.
WAYS: Sequence[tuple[tuple[str, ...], str, str]] = (
    (("naive",), "stages in turn", COLOURS[0]),
    (("ddp",), "DDP", COLOURS[1]),
    (("gpipe", "1f1b", "interleaved", "zerobubble"), "torch's best pipeline", COLOURS[2]),
    (("exact",), "our exact engine", COLOURS[3]),
    (("stale",), "stale gradients", COLOURS[7]),
    (("decoupled",), "decoupled", COLOURS[5]),
)
LINKS = {
    "loopback": "loopback",
    "5ms-1gbit": "5 ms\n1 Gb/s",
    "20ms-1gbit": "20 ms\n1 Gb/s",
    "5ms-100mbit": "5 ms\n100 Mb/s",
}
WIDTH, HEIGHT = 300.0, 210.0
LEFT, TOP, GAP = 62.0, 38.0, 46.0
MOST = 2.2  # times one core: the axis' end
BAR, APART = 9.0, 14.0


def plot(study: Mapping[str, Any]) -> str:
    """The picture as SVG."""
    parts: list[list[str]] = []
    for place, (family, name) in enumerate(NAMES.items()):
        left = LEFT + place * (WIDTH + GAP)
        cases = {c["link_name"]: c for c in study["cases"] if c["family"] == family}
        parts.append(list(_panel(left, name, cases, first=place == 0)))
    right = LEFT + len(NAMES) * (WIDTH + GAP)
    entries = [(colour, words) for _, words, colour in WAYS]
    parts.append(legend(right - 12, TOP + 12, "the best of", entries))
    below = TOP + 12 + 10 + 19 * len(WAYS) + 16
    parts.append([line(right - 12, below, right + 10, below, 2.0)])
    parts.append([text(right + 17, below + 4, "ceiling of the cores", size=11)])
    title = "Samples per second over one core, by model, link and way to train"
    return picture(right + 170, TOP + HEIGHT + 58, title, parts)


def _panel(
    left: float, name: str, cases: Mapping[str, Mapping[str, Any]], *, first: bool
) -> Iterator[str]:
    bottom = TOP + HEIGHT
    yield text(left, TOP - 12, name, weight="bold")
    for step in range(5):
        value = step / 2
        y = bottom - value / MOST * HEIGHT
        yield line(left - 4, y, left + WIDTH, y, 1.0 if step in (0, 2) else 0.2)
        yield text(left - 8, y + 4, f"{value:g}", anchor="end", size=11)
    if first:
        middle = (TOP + bottom) / 2
        yield text(left - 40, middle, "times one core", anchor="middle", turned=True)
    group = len(WAYS) * BAR
    for place, link in enumerate(TITLES):
        begin = left + 10 + place * (group + APART)
        for row, words in enumerate(LINKS[link].split("\n")):
            yield text(begin + group / 2, bottom + 16 + 13 * row, words, anchor="middle", size=11)
        if link in cases:
            yield from _bars(begin, bottom, cases[link])


def _bars(begin: float, bottom: float, case: Mapping[str, Any]) -> Iterator[str]:
    for place, (families, _, colour) in enumerate(WAYS):
        found = best(case, families)
        if found is None:
            continue
        height = min(found["ratio_to_one_core"], MOST) / MOST * HEIGHT
        yield (
            f"<rect x='{begin + place * BAR:.2f}' y='{bottom - height:.2f}' width='{BAR - 1:.2f}' "
            f"height='{height:.2f}' fill='{colour}' stroke='{INK}' stroke-width='0.3'/>"
        )
    ceiling = best(case, ("ceiling",))
    if ceiling is not None:
        y = bottom - min(ceiling["ratio_to_one_core"], MOST) / MOST * HEIGHT
        yield line(begin - 3, y, begin + len(WAYS) * BAR + 2, y, 2.0)
