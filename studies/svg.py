"""Small pictures for papers: panels with axes, fields of colour, contours, curves.

Not a plotting library: what the studies need, without a dependency. Colours are told apart with
any kind of colour vision: an orange-white-blue scale for better and worse, and Okabe and Ito's for
kinds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from math import log10

FONT = "font-family='Helvetica, Arial, sans-serif'"
INK = "#222222"
# Worse than 1 orange, better blue, darker the further away.
EDGES = (0.5, 0.8, 0.95, 1.05, 1.25, 1.5, 2.0, 4.0, 16.0)
SHADES = (
    "#8c3d04",
    "#d9782d",
    "#f6c38b",
    "#f2f2f2",
    "#d6e6f4",
    "#abcfe6",
    "#6aaed6",
    "#3787c0",
    "#105ba4",
    "#052f63",
)
COLOURS = ("#999999", "#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")


def shade(value: float) -> str:
    """The colour of a quotient; white around 1."""
    return SHADES[sum(value >= edge for edge in EDGES)]


def shade_labels() -> list[tuple[str, str]]:
    """Each shade and the quotients that it stands for."""
    inner = [f"{low:g} to {high:g}" for low, high in pairwise(EDGES)]
    labels = [f"below {EDGES[0]:g}", *inner, f"{EDGES[-1]:g} and more"]
    return list(zip(SHADES, labels, strict=True))


@dataclass(frozen=True)
class Axis:
    """An axis.

    Attributes:
        label: with the unit.
        values: at the cells' centres, ascending; of an even axis its ends.
        ticks: values and what to write there.
        even: whether equal differences are equally long; otherwise equal quotients are.
    """

    label: str
    values: Sequence[float]
    ticks: Sequence[tuple[float, str]]
    even: bool = False

    def place(self, value: float, length: float) -> float:
        """Distance from the axis' beginning.

        Half a cell is left free at both ends of a logarithmic axis; what lies beyond the ends of
        an even one is put there.
        """
        if self.even:
            low, high = self.values[0], self.values[-1]
            return min(max((value - low) / (high - low), 0.0), 1.0) * length
        low, high = log10(self.values[0]), log10(self.values[-1])
        cells = len(self.values)
        inside = (log10(value) - low) / (high - low) * (cells - 1) if cells > 1 else 0.0
        return (inside + 0.5) / cells * length


@dataclass
class Panel:
    """A rectangle with two axes, to be drawn into.

    Attributes:
        left, top, width, height: in pixels.
        x, y: its axes.
        title: above it.
    """

    left: float
    top: float
    width: float
    height: float
    x: Axis
    y: Axis
    title: str
    marks: list[str] = field(default_factory=list)

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        across = self.left + self.x.place(x, self.width)
        return across, self.top + self.height - self.y.place(y, self.height)

    def cells(self, colour: Callable[[int, int], str]) -> None:
        """Fills each cell with `colour(column, row)`."""
        wide, high = self.width / len(self.x.values), self.height / len(self.y.values)
        for column in range(len(self.x.values)):
            for row in range(len(self.y.values)):
                left = self.left + column * wide
                top = self.top + self.height - (row + 1) * high
                # A little larger than the cell: no seams in viewers that smooth edges.
                self.marks.append(
                    f"<rect x='{left:.2f}' y='{top:.2f}' width='{wide + 0.3:.2f}' "
                    f"height='{high + 0.3:.2f}' fill='{colour(column, row)}'/>"
                )

    def contour(self, value: Callable[[int, int], float]) -> None:
        """Draws where `value(column, row)`, between cells' centres, passes 0."""
        for column in range(len(self.x.values) - 1):
            for row in range(len(self.y.values) - 1):
                self._square(column, row, value)

    def _square(self, column: int, row: int, value: Callable[[int, int], float]) -> None:
        corners = [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)]
        crossings = []
        for (c, r), (d, s) in pairwise(corners):
            here, there = value(column + c, row + r), value(column + d, row + s)
            if (here < 0) != (there < 0):
                part = here / (here - there)
                crossings.append((column + c + part * (d - c), row + r + part * (s - r)))
        wide, high = self.width / len(self.x.values), self.height / len(self.y.values)
        points = [
            (self.left + (c + 0.5) * wide, self.top + self.height - (r + 0.5) * high)
            for c, r in crossings
        ]
        for (x1, y1), (x2, y2) in zip(points[::2], points[1::2], strict=True):
            self.marks.append(
                f"<line x1='{x1:.2f}' y1='{y1:.2f}' x2='{x2:.2f}' y2='{y2:.2f}' "
                "stroke='black' stroke-width='2' stroke-linecap='round'/>"
            )

    def curve(self, points: Sequence[tuple[float, float]], colour: str, dash: str = "") -> None:
        """A line through points: dashed, or with a mark at each."""
        places = [self.at(x, y) for x, y in points]
        text = " ".join(f"{x:.2f},{y:.2f}" for x, y in places)
        dashed = f" stroke-dasharray='{dash}'" if dash else ""
        self.marks.append(
            f"<polyline points='{text}' fill='none' stroke='{colour}' stroke-width='2'{dashed}/>"
        )
        if dash:
            return
        self.marks += [
            f"<circle cx='{x:.2f}' cy='{y:.2f}' r='2.5' fill='{colour}'/>" for x, y in places
        ]

    def svg(self) -> list[str]:
        """The panel with its axes."""
        bottom, right = self.top + self.height, self.left + self.width
        lines = [*self.marks]
        lines.append(
            f"<rect x='{self.left:.2f}' y='{self.top:.2f}' width='{self.width:.2f}' "
            f"height='{self.height:.2f}' fill='none' stroke='{INK}'/>"
        )
        for value, label in self.x.ticks:
            x = self.left + self.x.place(value, self.width)
            lines.append(line(x, bottom, x, bottom + 4))
            lines.append(text(x, bottom + 17, label, anchor="middle", size=11))
        for value, label in self.y.ticks:
            y = bottom - self.y.place(value, self.height)
            lines.append(line(self.left - 4, y, self.left, y))
            lines.append(text(self.left - 7, y + 4, label, anchor="end", size=11))
        middle = (self.left + right) / 2
        lines.append(text(middle, bottom + 35, self.x.label, anchor="middle"))
        height = (self.top + bottom) / 2
        lines.append(text(self.left - 52, height, self.y.label, anchor="middle", turned=True))
        lines.append(text(self.left, self.top - 9, self.title, weight="bold"))
        return lines


def text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: int = 12,
    weight: str = "normal",
    turned: bool = False,
) -> str:
    """A line of text."""
    turn = f" transform='rotate(-90 {x:.2f} {y:.2f})'" if turned else ""
    return (
        f"<text x='{x:.2f}' y='{y:.2f}' {FONT} font-size='{size}' font-weight='{weight}' "
        f"fill='{INK}' text-anchor='{anchor}'{turn}>{escape(words)}</text>"
    )


def legend(x: float, y: float, title: str, entries: Sequence[tuple[str, str]]) -> list[str]:
    """Colours and their meanings, one below the other."""
    lines = [text(x, y, title, weight="bold")]
    for place, (colour, label) in enumerate(entries):
        top = y + 10 + 19 * place
        lines.append(
            f"<rect x='{x:.2f}' y='{top:.2f}' width='22' height='14' fill='{colour}' "
            f"stroke='{INK}' stroke-width='0.5'/>"
        )
        lines.append(text(x + 29, top + 11, label, size=11))
    return lines


def picture(width: float, height: float, title: str, parts: Sequence[Sequence[str]]) -> str:
    """The whole file."""
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{width:g}' height='{height:g}' "
        f"viewBox='0 0 {width:g} {height:g}' role='img'>"
    )
    body = [line for part in parts for line in part]
    ground = f"<rect width='{width:g}' height='{height:g}' fill='white'/>"
    return "\n".join([head, f"<title>{escape(title)}</title>", ground, *body, "</svg>", ""])


def line(x1: float, y1: float, x2: float, y2: float, width: float = 1.0) -> str:
    """A straight line."""
    wide = "" if width == 1.0 else f" stroke-width='{width:g}'"
    return f"<line x1='{x1:.2f}' y1='{y1:.2f}' x2='{x2:.2f}' y2='{y2:.2f}' stroke='{INK}'{wide}/>"
