"""A stage's rows as a column of boxes with the edges between them.

Rows stand in execution order, so every edge points downwards. An edge to the next row is a short
arrow; any other runs through a lane to the left of the boxes, one lane for all edges that leave the
same row. Lanes never cross boxes, whatever the graph looks like, which no general layout promises.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dnic.graph.diagram import Box, Edge, Node, Point, Rectangle, Style
from dnic.report import ink
from dnic.report.outline import Frame, Item, Row, rows

ROW_HEIGHT = 17.0
REPEATED_HEIGHT = 28.0
GAP = 10.0
FRAME_PADDING = 6.0
CAPTION_HEIGHT = 15.0
LANE = 7.0
MOST_LANES = 6
SHADOW = 2.5
INSET = 6.0
LEAVE_BELOW = 4.5

MODULE_STYLE = Style(stroke="#7d858f", fill=ink.WHITE, width=0.75, rounded=True)
FUNCTION_STYLE = Style(stroke="none", fill="#e3e6ea", width=0.75, rounded=True)
VALUE_STYLE = Style(stroke=ink.HAIRLINE, fill=ink.WHITE, width=0.75, dash="dashed", rounded=True)
FRAME_STYLE = Style(stroke=ink.HAIRLINE, fill="#fbfbfc", width=0.75)


@dataclass(frozen=True)
class Lanes:
    """Which lane the edges that leave a row take; the lane nearest to the boxes is 0.

    Key -1 stands for tensors that enter the stage from the left.
    """

    of_row: dict[int, int]
    count: int


@dataclass(frozen=True)
class Column:
    """The drawn rows of one stage.

    `place_of` and `node_of` give, for each operation of the stage, the box that shows it.
    """

    nodes: tuple[Node, ...]
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    place_of: dict[str, Rectangle]
    node_of: dict[str, str]
    bottom: float


def wanted_width(items: Sequence[Item]) -> float:
    """The width of the rows at which no text is shortened, in points."""
    widest = 0.0
    for item in items:
        if isinstance(item, Frame):
            # Label and detail have half of the caption each: the arrow passes between them.
            caption = 2 * max(
                ink.text_width(item.label, ink.SMALL_SIZE, bold=True),
                ink.text_width(_caption_detail(item), ink.SMALL_SIZE),
            )
            widest = max(widest, caption + 30, wanted_width(item.items) + 2 * FRAME_PADDING)
        elif item.count > 1:
            widest = max(widest, ink.text_width(item.label, ink.LABEL_SIZE) + 2 * INSET)
        else:
            label = ink.text_width(item.label, ink.LABEL_SIZE)
            detail = ink.text_width(item.detail, ink.SMALL_SIZE)
            widest = max(widest, label + detail + 2 * INSET + 8 * bool(item.detail))
    return widest


def lanes(items: Sequence[Item], entering: frozenset[str] = frozenset()) -> Lanes:
    """Lanes for the edges inside a stage and, from the left, for the tensors in `entering`."""
    spans = [
        (max(targets) - source, source, max(targets))
        for source, targets in _targets(items, entering).items()
        if max(targets) > source + 1
    ]
    taken: list[list[tuple[int, int]]] = []
    of_row: dict[int, int] = {}
    for _, start, end in sorted(spans):
        free = (
            lane
            for lane, others in enumerate(taken)
            if all(end <= other[0] or start >= other[1] for other in others)
        )
        lane = next(free, min(len(taken), MOST_LANES - 1))
        if lane == len(taken):
            taken.append([])
        taken[lane].append((start, end))
        of_row[start] = lane
    return Lanes(of_row, len(taken))


def column(items: Sequence[Item], stage: str, area: Rectangle, used_lanes: Lanes) -> Column:
    """Draws the rows from the top of `area` on, in its width; its height is not looked at.

    `stage` begins the names of all nodes, so that stages cannot collide.
    """
    drawing = _ColumnDrawing(stage)
    nodes, boxes, bottom = drawing.draw(items, area)
    edges = drawing.edges(items, used_lanes, area)
    return Column(nodes, boxes, edges, drawing.place_of, drawing.node_of, bottom)


def lane_left(area_left: float, lane: int) -> float:
    """Where a lane runs, to the left of the boxes that begin at `area_left`."""
    return area_left - LANE * (lane + 1)


class _ColumnDrawing:
    """Collects where each operation landed while the rows are placed one below the other."""

    def __init__(self, stage: str) -> None:
        self.stage = stage
        self.places: list[Rectangle] = []
        self.names: list[str] = []
        self.place_of: dict[str, Rectangle] = {}
        self.node_of: dict[str, str] = {}

    def draw(
        self, items: Sequence[Item], area: Rectangle
    ) -> tuple[tuple[Node, ...], tuple[Box, ...], float]:
        nodes: list[Node] = []
        boxes: list[Box] = []
        top = area.top
        for item in items:
            # What is repeated leaves room for the cards behind it.
            width = area.width - 2 * SHADOW * (item.count > 1)
            if isinstance(item, Frame):
                box = self._frame(item, Rectangle(area.left, top, width, 0))
                behind = [
                    Box(f"{box.name} behind {i}", _moved(box.place, i * SHADOW), FRAME_STYLE)
                    for i in (2, 1)
                    if item.count > 1
                ]
                boxes += [*behind, box]
                bottom = [*behind, box][0].place.bottom
            else:
                height = REPEATED_HEIGHT if item.count > 1 else ROW_HEIGHT
                place = Rectangle(area.left, top, width, height)
                nodes += self._row(item, place)
                bottom = place.bottom + 2 * SHADOW * (item.count > 1)
            top = bottom + GAP
        return tuple(nodes), tuple(boxes), top - GAP

    def _frame(self, frame: Frame, area: Rectangle) -> Box:
        inside = Rectangle(
            area.left + FRAME_PADDING,
            area.top + CAPTION_HEIGHT,
            area.width - 2 * FRAME_PADDING,
            0,
        )
        name = f"{self.stage}/{frame.first or frame.label} {len(self.places)}"
        nodes, boxes, bottom = self.draw(frame.items, inside)
        place = Rectangle(area.left, area.top, area.width, bottom + FRAME_PADDING - area.top)
        half = Rectangle(area.left + 5, area.top + 2, area.width / 2 - 9, 11)
        other = Rectangle(area.left + area.width / 2 + 4, area.top + 2, area.width / 2 - 9, 11)
        captions = [
            ink.label(name + " label", half, frame.label, ink.SMALL_SIZE, ink.INK, "left", "bold"),
            ink.label(
                name + " detail", other, _caption_detail(frame), ink.SMALL_SIZE, align="right"
            ),
        ]
        tooltip = f"{frame.label} {_caption_detail(frame)}".strip()
        return Box(name, place, FRAME_STYLE, (*captions, *nodes), boxes, tooltip)

    def _row(self, row: Row, place: Rectangle) -> list[Node]:
        # Rows of equal operations differ by their number.
        name = f"{self.stage}/{row.operations[0].name} {len(self.places)}"
        self.places.append(place)
        self.names.append(name)
        for op in row.operations:
            self.place_of[op.name] = place
            self.node_of[op.name] = name
        style = {"module": MODULE_STYLE, "function": FUNCTION_STYLE}.get(row.kind, VALUE_STYLE)
        nodes = [
            Node(f"{name} behind {i}", _moved(place, i * SHADOW), style=style)
            for i in (2, 1)
            if row.count > 1
        ]
        nodes.append(Node(name, place, style=style, tooltip=_tooltip(row)))
        return nodes + _row_texts(row, name, place)

    def edges(self, items: Sequence[Item], used_lanes: Lanes, area: Rectangle) -> tuple[Edge, ...]:
        found = []
        for source, targets in _targets(items, frozenset()).items():
            for target in sorted(targets):
                start, end = self.places[source], self.places[target]
                if target == source + 1:
                    x = area.middle[0]
                    points: tuple[Point, ...] = ((x, start.bottom), (x, end.top))
                else:
                    x = lane_left(area.left, used_lanes.of_row[source])
                    # Edges arrive at the middle and leave below it, so that both can be told.
                    y, end_y = start.middle[1] + LEAVE_BELOW, end.middle[1]
                    points = ((start.left, y), (x, y), (x, end_y), (end.left, end_y))
                found.append(Edge(self.names[source], self.names[target], points, ink.INSIDE))
        return tuple(found)


def _targets(items: Sequence[Item], entering: frozenset[str]) -> dict[int, set[int]]:
    """For each row, the later rows that use what it yields; key -1 for what enters the stage."""
    drawn = rows(items)
    row_of = {op.name: i for i, row in enumerate(drawn) for op in row.operations}
    targets: dict[int, set[int]] = {}
    for i, row in enumerate(drawn):
        for op in row.operations:
            for name in op.inputs:
                source = -1 if name in entering else row_of.get(name, i)
                if source < i:
                    targets.setdefault(source, set()).add(i)
    return targets


def _row_texts(row: Row, name: str, place: Rectangle) -> list[Node]:
    inside = Rectangle(place.left + INSET, place.top, place.width - 2 * INSET, place.height)
    if row.count > 1:
        upper = Rectangle(inside.left, place.top + 3, inside.width, 11)
        lower = Rectangle(inside.left, place.top + 14, inside.width, 10)
        detail = f"{row.count} × {row.detail or row.label}"
        return [
            ink.label(name + " label", upper, row.label, ink.LABEL_SIZE, ink.INK, "left"),
            ink.label(name + " detail", lower, detail, ink.SMALL_SIZE, align="left"),
        ]
    if row.kind != "module":
        face: Literal["italic", "regular"] = "regular" if row.kind == "function" else "italic"
        return [ink.label(f"{name} label", inside, row.label, ink.LABEL_SIZE, ink.INK, face=face)]
    # The class gives way to the name down to a third of the width.
    left_over = inside.width - 6 - ink.text_width(row.label, ink.LABEL_SIZE)
    detail_width = ink.text_width(row.detail, ink.SMALL_SIZE)
    detail_width = min(detail_width, max(left_over, inside.width / 3))
    label = Rectangle(inside.left, place.top, inside.width - detail_width - 6, place.height)
    detail_place = Rectangle(inside.right - detail_width, place.top, detail_width, place.height)
    texts = [ink.label(name + " label", label, row.label, ink.LABEL_SIZE, ink.INK, "left")]
    if row.detail:
        texts.append(
            ink.label(name + " detail", detail_place, row.detail, ink.SMALL_SIZE, align="right")
        )
    return texts


def _caption_detail(frame: Frame) -> str:
    if frame.count == 1:
        return frame.detail
    return f"{frame.count} × {frame.detail}" if frame.detail else f"× {frame.count}"


def _moved(place: Rectangle, by: float) -> Rectangle:
    return Rectangle(place.left + by, place.top + by, place.width, place.height)


def _tooltip(row: Row) -> str:
    parameters = sum(op.parameters for op in row.operations)
    share = sum(op.time_share for op in row.operations)
    parts = [row.label, row.detail, f"{parameters:,} parameters" if parameters else ""]
    return ", ".join(part for part in [*parts, f"{100 * share:.1f} % of time"] if part)
