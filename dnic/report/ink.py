"""The few colours, type sizes and distances of every picture, and how wide a text is.

The colours are those of Okabe and Ito that differ in hue for colour-blind readers; each kind of
line also has its own dash, so that nothing is lost in greyscale. Distances are in points. Widths
are estimated from Helvetica's metrics in four classes of letters, with room to spare for fonts
that replace it; nothing is measured in the renderer.
"""

from __future__ import annotations

from typing import Literal

from dnic.graph.diagram import Node, Rectangle, Style, Text

INK = "#1f2328"
MUTED = "#5f6670"
HAIRLINE = "#b4bac2"
PALE = "#f5f6f8"
TRACK = "#dcdfe4"
WHITE = "#ffffff"
BLUE = "#0072b2"
PALE_BLUE = "#e4f0f8"
ORANGE = "#d55e00"

TITLE_SIZE = 11.0
HEADING_SIZE = 9.5
LABEL_SIZE = 8.0
SMALL_SIZE = 7.0

FORWARD = Style(stroke=INK, width=1.5)
INSIDE = Style(stroke=INK, width=0.75)
PREDICTED = Style(stroke=BLUE, width=1.5, dash="dashed")
TRUE = Style(stroke=ORANGE, width=1.5, dash="dotted")
EXACT = Style(stroke=ORANGE, width=1.5)

_NARROW = frozenset(" .,:;'`!|ijlftrI()[]{}/\\-·\N{NO-BREAK SPACE}")
_WIDE = frozenset("mwMW@%…→")


def text_width(text: str, size: float, *, bold: bool = False) -> float:
    """Estimated width of a text in points, rather too wide than too narrow."""
    ems = 0.0
    for letter in text:
        if letter in _NARROW:
            ems += 0.31
        elif letter in _WIDE:
            ems += 0.90
        else:
            ems += 0.70 if letter.isupper() else 0.56
    return ems * size * (1.07 if bold else 1.0)


def shortened(text: str, width: float, size: float) -> str:
    """The text with its middle left out where it is wider than `width`; both ends tell most."""
    if text_width(text, size) <= width:
        return text
    keep = len(text) - 1
    while keep > 2:
        head, tail = text[: keep // 2], text[len(text) - (keep - keep // 2) :]
        if text_width(f"{head}…{tail}", size) <= width:
            return f"{head}…{tail}"
        keep -= 1
    return text[:1] + "…"


def label(
    name: str,
    place: Rectangle,
    text: str,
    size: float = SMALL_SIZE,
    color: str = MUTED,
    align: Literal["left", "center", "right"] = "center",
    face: Literal["regular", "bold", "italic"] = "regular",
) -> Node:
    """A line of text in a place, shortened to its width; the whole text is the tooltip."""
    # Bold letters are wider; a smaller place stands for that.
    fitting = shortened(text, place.width / (1.07 if face == "bold" else 1.0), size)
    # A renderer centres text that is wider than its place; a wider font must not cause that.
    spare = place.width / 8
    left = place.left - {"left": 0, "center": spare / 2, "right": spare}[align]
    roomy = Rectangle(left, place.top, place.width + spare, place.height)
    return Node(name, roomy, Text(fitting, size, color, align, face), tooltip=text)
