"""The key under a partition diagram: what each line means, only for lines that appear in it."""

from __future__ import annotations

from dataclasses import dataclass

from dnic.graph.diagram import Edge, Node, Point, Rectangle, Style
from dnic.partition.plan import Plan
from dnic.report import ink

SAMPLE_WIDTH = 24.0
HEIGHT = 10.0
SPACE = 16.0


@dataclass(frozen=True)
class Legend:
    """Samples of lines and their names."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]


def legend(plan: Plan, corner: Point, width: float) -> Legend:
    """The key of a plan's picture, its top left corner at `corner`, in rows up to `width`."""
    left, top = corner
    nodes: list[Node] = []
    edges: list[Edge] = []
    for style, text in _entries(plan):
        text_width = ink.text_width(text, ink.SMALL_SIZE)
        if left > corner[0] and left + SAMPLE_WIDTH + 5 + text_width > corner[0] + width:
            left, top = corner[0], top + HEIGHT + 4
        y = top + HEIGHT / 2
        ends = ((left, y), (left + SAMPLE_WIDTH, y))
        names = [f"legend {text} {end}" for end in ("from", "to")]
        nodes += [
            Node(name, Rectangle(x - 0.5, y - 0.5, 1, 1))
            for name, (x, _) in zip(names, ends, strict=True)
        ]
        edges.append(Edge(names[0], names[1], ends, style))
        place = Rectangle(left + SAMPLE_WIDTH + 5, top, text_width, HEIGHT)
        nodes.append(ink.label(f"legend {text}", place, text, align="left"))
        left = place.right + SPACE
    return Legend(tuple(nodes), tuple(edges))


def _entries(plan: Plan) -> list[tuple[Style, str]]:
    sources = {
        interface.gradient if not interface.predicted else "predicted"
        for interface in plan.interfaces
        if interface.differentiable
    }
    entries = [(ink.FORWARD, "activation")] if plan.interfaces else []
    if "predicted" in sources:
        entries.append((ink.PREDICTED, "predicted gradient, used at once"))
    if any(interface.predicted and interface.return_every for interface in plan.interfaces):
        entries.append((ink.TRUE, "true gradient, later"))
    if "stale" in sources:
        entries.append((ink.TRUE, "true gradient, used late"))
    if "exact" in sources:
        entries.append((ink.EXACT, "exact gradient, waited for"))
    return entries
