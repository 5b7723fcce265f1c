"""A picture as data: boxes that nest, nodes, edges, each with its place and its style.

Places are in points (1/72 inch) from the top left corner, downwards. `dnic.graph.drawing` draws a
diagram; nothing here checks that a text fits its place or that an edge meets its nodes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Point = tuple[float, float]
"""Horizontal and vertical place."""


@dataclass(frozen=True)
class Style:
    """How an outline or a line is drawn; colours as `#rrggbb` or `none`, widths in points."""

    stroke: str = "#000000"
    fill: str = "none"
    width: float = 0.75
    dash: Literal["solid", "dashed", "dotted"] = "solid"
    rounded: bool = False


@dataclass(frozen=True)
class Text:
    """One line of text; `size` in points."""

    text: str
    size: float = 8.0
    color: str = "#000000"
    align: Literal["left", "center", "right"] = "center"
    face: Literal["regular", "bold", "italic"] = "regular"


@dataclass(frozen=True)
class Rectangle:
    """A place on the page, in points."""

    left: float
    top: float
    width: float
    height: float

    @property
    def right(self) -> float:
        """The right edge."""
        return self.left + self.width

    @property
    def bottom(self) -> float:
        """The lower edge."""
        return self.top + self.height

    @property
    def middle(self) -> Point:
        """The centre."""
        return (self.left + self.width / 2, self.top + self.height / 2)


@dataclass(frozen=True)
class Node:
    """A shape with at most one line of text inside.

    `name` is unique in the diagram and what edges refer to. Without a style only the text is
    drawn. `tooltip` shows when the pointer rests on the node in an SVG.
    """

    name: str
    place: Rectangle
    text: Text | None = None
    style: Style | None = None
    shape: Literal["box", "hexagon"] = "box"
    tooltip: str = ""


@dataclass(frozen=True)
class Box:
    """A frame around nodes and further boxes; drawn behind them, in the order given."""

    name: str
    place: Rectangle
    style: Style
    nodes: tuple[Node, ...] = ()
    boxes: tuple[Box, ...] = ()
    tooltip: str = ""


@dataclass(frozen=True)
class Edge:
    """A line through `points`, its corners rounded with `radius`, from one node to another.

    The points need not touch the nodes: a gradient may end at the frame of the stage. An
    `arrow_length` of 0 draws no arrowhead.
    """

    tail: str
    head: str
    points: tuple[Point, ...]
    style: Style
    arrow_length: float = 5.0
    radius: float = 4.0
    tooltip: str = ""


@dataclass(frozen=True)
class Diagram:
    """A picture: boxes lie behind edges, edges behind nodes."""

    title: str
    boxes: tuple[Box, ...] = ()
    nodes: tuple[Node, ...] = ()
    edges: tuple[Edge, ...] = ()
