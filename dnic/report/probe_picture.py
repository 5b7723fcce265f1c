"""What a probe found, as a picture: where in a model gradients can be predicted.

Along the model's forward cost, for each source the progress of a step along its gradient, a panel
for each lateness. Graphviz, which draws the other pictures, draws no curves; these are a few lines
of SVG. Each source has a colour of Okabe and Ito's and a dash of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from dnic.partition.probed import Probe, ProbedCut, ProbedRow
from dnic.report import ink

_COLOURS = (ink.BLUE, ink.ORANGE, "#009e73", "#cc79a7", "#56b4e9", "#e69f00", ink.INK)
_DASHES = ("", "6 3", "2 2", "8 2 2 2", "4 4", "1 3", "10 4")
_FONT = "Helvetica, Arial, sans-serif"

_LEFT, _TOP, _RIGHT = 52.0, 46.0, 18.0
_WIDTH, _HEIGHT = 300.0, 190.0
_BETWEEN, _LABELS = 30.0, 96.0
_LOWEST, _HIGHEST = -0.5, 1.25
_TICKS = (-0.5, 0.0, 0.5, 1.0)
# Names of cuts closer than this would overlap.
_NAME_HEIGHT = 10.0


def probe_svg(probe: Probe) -> str:
    """The picture, as the text of an SVG file."""
    panels = list(probe.latenesses)
    legend = sum(_entry_width(source) for source in probe.sources)
    wide = len(panels) * _WIDTH + (len(panels) - 1) * _BETWEEN
    width = _LEFT + max(wide, legend) + _RIGHT
    height = _TOP + _HEIGHT + _LABELS + 22
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:g}" height="{height:g}" '
        f'viewBox="0 0 {width:g} {height:g}" role="img">',
        f"<title>{escape(probe.model.name)}: where gradients can be predicted</title>",
        f'<rect width="{width:g}" height="{height:g}" fill="{ink.WHITE}"/>',
    ]
    for place, lateness in enumerate(panels):
        left = _LEFT + place * (_WIDTH + _BETWEEN)
        lines += _panel(probe, lateness, left, named=place == 0)
    lines += _legend(probe.sources, height - 14)
    return "\n".join([*lines, "</svg>", ""])


def _panel(probe: Probe, lateness: int, left: float, *, named: bool) -> Iterator[str]:
    """Axes, the names of the cuts, and a line for each source."""
    bottom = _TOP + _HEIGHT
    updates = f"{lateness} update{'s' if lateness > 1 else ''}"
    yield _text(left, _TOP - 10, f"true gradients {updates} late", size=11, bold=True)
    for value in _TICKS:
        y = _height(value)
        # The zero gradient makes no progress, the true one 1.
        colour = ink.MUTED if value in (0.0, 1.0) else ink.TRACK
        yield _line(left, y, left + _WIDTH, y, colour)
        if named:
            yield _text(left - 6, y + 3, f"{value:g}", anchor="end")
    if named:
        yield _text(14, _TOP + _HEIGHT / 2, "progress of a step (true gradient: 1)", turn=-90)
    for x, cut in _labels(probe.cuts, left):
        yield _line(x, bottom, x, bottom + 4, ink.MUTED)
        name = ink.shortened(f"{cut.after}  {cut.share:.0%}", _LABELS - 10, ink.LABEL_SIZE)
        yield _text(x + 3, bottom + 8, name, anchor="end", turn=-90)
    yield (
        f'<rect x="{left:g}" y="{_TOP:g}" width="{_WIDTH:g}" height="{_HEIGHT:g}" fill="none" '
        f'stroke="{ink.INK}"/>'
    )
    shares = {cut.after: cut.share for cut in probe.cuts}
    for number, source in enumerate(probe.sources):
        rows = [row for row in probe.rows if (row.source, row.lateness) == (source, lateness)]
        yield from _curve(rows, shares, left, number)


def _labels(cuts: Sequence[ProbedCut], left: float) -> Iterator[tuple[float, ProbedCut]]:
    """The cuts that have room for their name."""
    free = left
    for cut in cuts:
        x = left + cut.share * _WIDTH
        if x >= free:
            yield x, cut
            free = x + _NAME_HEIGHT


def _curve(
    rows: Sequence[ProbedRow], shares: dict[str, float], left: float, number: int
) -> Iterator[str]:
    points = [
        (left + shares[row.cut] * _WIDTH, _height(row.progress), row)
        for row in rows
        if row.progress is not None
    ]
    colour, dash = _style(number)
    if len(points) > 1:
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y, _ in points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"{dash}/>'
    for x, y, row in points:
        if row.progress_error:
            ends = [_height((row.progress or 0) + side * row.progress_error) for side in (-1, 1)]
            yield _line(x, ends[0], x, ends[1], colour)
        tip = f"{row.source} after {row.cut}: {row.progress:.2f}, explained {row.explained:.2f}"
        yield (
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}">'
            f"<title>{escape(tip)}</title></circle>"
        )


def _legend(sources: Sequence[str], y: float) -> Iterator[str]:
    x = _LEFT
    for number, source in enumerate(sources):
        colour, dash = _style(number)
        yield (
            f'<line x1="{x:g}" y1="{y:g}" x2="{x + 24:g}" y2="{y:g}" stroke="{colour}" '
            f'stroke-width="1.5"{dash}/>'
        )
        yield _text(x + 29, y + 3, source)
        x += _entry_width(source)


def _entry_width(source: str) -> float:
    return 29 + ink.text_width(source, ink.LABEL_SIZE) + 16


def _style(number: int) -> tuple[str, str]:
    dash = _DASHES[number % len(_DASHES)]
    return _COLOURS[number % len(_COLOURS)], f' stroke-dasharray="{dash}"' if dash else ""


def _height(value: float) -> float:
    """Where a value lies; one outside of the panel at its edge."""
    inside = min(max(value, _LOWEST), _HIGHEST)
    return _TOP + _HEIGHT * (_HIGHEST - inside) / (_HIGHEST - _LOWEST)


def _line(x1: float, y1: float, x2: float, y2: float, colour: str) -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" '
        'stroke-width="0.75"/>'
    )


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "start",
    size: float = ink.LABEL_SIZE,
    bold: bool = False,
    turn: int = 0,
) -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    middle = ' text-anchor="middle"' if turn and anchor == "start" else f' text-anchor="{anchor}"'
    weight = ' font-weight="bold"' if bold else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-family="{_FONT}" font-size="{size:g}" '
        f'fill="{ink.INK}"{weight}{middle}{turned}>{escape(words)}</text>'
    )
