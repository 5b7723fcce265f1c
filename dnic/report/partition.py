"""The partition diagram: stages from left to right, what crosses between them, and the heads.

The picture of a plan for a paper, a README or a review: quiet colours that survive greyscale and
colour-blind readers, everything aligned, white background. It shows what the plan predicts, not
what was measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dnic.graph.diagram import Box, Diagram, Node, Rectangle, Style
from dnic.graph.drawing import render
from dnic.partition.plan import Plan, PlannedInterface, PlannedStage
from dnic.report import crossing, ink, units
from dnic.report.column import LANE, ROW_HEIGHT, Lanes, column, lanes
from dnic.report.column import wanted_width as wanted_row_width
from dnic.report.crossing import Crossing, Panel
from dnic.report.legend import legend
from dnic.report.outline import Item, outline, rows

MOST_ROWS = 12
PADDING = 10.0
HEADING_HEIGHT = 58.0
TITLE_HEIGHT = 34.0
ROWS_WIDTH = (112.0, 180.0)
LEAST_GAP = 104.0
LEGEND_SPACE = 14.0

PANEL_STYLE = Style(stroke=ink.HAIRLINE, fill=ink.PALE, width=0.75)
TRACK_STYLE = Style(stroke="none", fill=ink.TRACK)
BAR_STYLE = Style(stroke="none", fill="#3d4651")


def partition_diagram(plan: Plan) -> Diagram:
    """The picture of a plan."""
    drawing = _measured(plan)
    panels = [drawing.panel(index) for index in range(len(plan.stages))]
    beside = drawing.interfaces_beside(panels)
    bottom = max([*(p.column.bottom for p in panels), *(c.bottom for c in beside)]) + PADDING
    panels = [replace(panel, place=_down_to(panel.place, bottom)) for panel in panels]
    below = drawing.interfaces_below(panels, bottom)
    crossings = [*beside, *below]
    bottom = max([bottom, *(c.bottom for c in crossings)])
    key = legend(plan, (0.0, bottom + LEGEND_SPACE), panels[-1].place.right)
    return Diagram(
        title=plan.model.name,
        boxes=tuple(map(_panel_box, plan.stages, panels)),
        nodes=(
            *_title(plan),
            *(node for crossing in crossings for node in crossing.nodes),
            *key.nodes,
        ),
        edges=(
            *(edge for panel in panels for edge in panel.column.edges),
            *(edge for crossing in crossings for edge in crossing.edges),
            *key.edges,
        ),
    )


def draw_plan(plan: Plan, path: str | Path) -> Path:
    """Draws a plan into a file; its suffix names the format: .svg, .png, .pdf or .dot.

    Raises:
        SpecError: for an unknown suffix or a folder that does not exist.
        DnicError: when no installed renderer writes this format.
    """
    return render(partition_diagram(plan), path)


@dataclass(frozen=True)
class _PartitionDrawing:
    """The plan with the rows of its stages and the distances that all stages share."""

    plan: Plan
    outlines: tuple[tuple[Item, ...], ...]
    lanes: tuple[Lanes, ...]
    rooms: tuple[tuple[float, float], ...]
    panel_width: float
    gap: float

    def panel(self, index: int) -> Panel:
        """A stage and its rows; how far down it reaches is not yet known."""
        left = index * (self.panel_width + self.gap)
        before, after = self.rooms[index]
        place = Rectangle(left, TITLE_HEIGHT, self.panel_width, 0)
        area = Rectangle(
            left + before, TITLE_HEIGHT + HEADING_HEIGHT, self.panel_width - before - after, 0
        )
        name = self.plan.stages[index].name
        drawn = column(self.outlines[index], name, area, self.lanes[index])
        return Panel(name, place, area, drawn, self.lanes[index])

    def interfaces_beside(self, panels: Sequence[Panel]) -> list[Crossing]:
        """Interfaces between neighbours; a second one between the same two lies under the first."""
        drawn: list[Crossing] = []
        lowest: dict[int, float] = {}
        for interface in filter(_is_beside, self.plan.interfaces):
            y = TITLE_HEIGHT + HEADING_HEIGHT + ROW_HEIGHT / 2
            if interface.source in lowest:
                y = lowest[interface.source] + crossing.text_height(interface) + PADDING
            ends = (panels[interface.source], panels[interface.to])
            drawn.append(crossing.beside(interface, self._users(interface), ends, y))
            lowest[interface.source] = drawn[-1].bottom
        return drawn

    def interfaces_below(self, panels: Sequence[Panel], bottom: float) -> list[Crossing]:
        """Interfaces that skip stages, one under the other."""
        drawn: list[Crossing] = []
        for interface in self.plan.interfaces:
            if not _is_beside(interface):
                ends = (panels[interface.source], panels[interface.to])
                top = bottom + PADDING
                drawn.append(crossing.below(interface, self._users(interface), ends, top))
                bottom = drawn[-1].bottom
        return drawn

    def _users(self, interface: PlannedInterface) -> dict[str, frozenset[str]]:
        operations = [op for row in rows(self.outlines[interface.to]) for op in row.operations]
        return {
            tensor.name: frozenset(op.name for op in operations if tensor.name in op.inputs)
            for tensor in interface.tensors
        }


def _measured(plan: Plan) -> _PartitionDrawing:
    outlines = tuple(outline(stage.operations, MOST_ROWS) for stage in plan.stages)
    used_lanes, rooms = [], []
    for index, items in enumerate(outlines):
        incoming = [i for i in plan.interfaces if i.to == index]
        outgoing = [i for i in plan.interfaces if i.source == index]
        entering = frozenset(t.name for i in incoming if _is_beside(i) for t in i.tensors)
        used = lanes(items, entering)
        exits = 2 if not all(map(_is_beside, outgoing)) else len(outgoing[:1])
        entries = used.count + (not all(map(_is_beside, incoming)))
        used_lanes.append(used)
        rooms.append((PADDING + LANE * entries, PADDING + LANE * exits))
    least, most = ROWS_WIDTH
    rows_width = min(max(least, *map(wanted_row_width, outlines)), most)
    gaps = [crossing.wanted_width(i) for i in plan.interfaces if _is_beside(i)]
    return _PartitionDrawing(
        plan=plan,
        outlines=outlines,
        lanes=tuple(used_lanes),
        rooms=tuple(rooms),
        panel_width=rows_width + max(map(sum, rooms)),
        gap=max([LEAST_GAP, *gaps]),
    )


def _is_beside(interface: PlannedInterface) -> bool:
    return interface.to == interface.source + 1


def _down_to(place: Rectangle, bottom: float) -> Rectangle:
    return replace(place, height=bottom - place.top)


def _panel_box(stage: PlannedStage, panel: Panel) -> Box:
    place, name = panel.place, panel.anchor
    inner = Rectangle(place.left + PADDING, place.top, place.width - 2 * PADDING, 0)

    def line(top: float, height: float) -> tuple[Rectangle, Rectangle]:
        y = place.top + top
        left, right = 0.45 * inner.width, 0.55 * inner.width
        return Rectangle(inner.left, y, left, height), Rectangle(
            inner.left + left, y, right, height
        )

    title, device = line(5, 13)
    time, duration = line(26, 10)
    parameters, memory = line(36, 10)
    track = Rectangle(inner.left, place.top + 20, inner.width, 3.5)
    bar = replace(track, width=max(0.5, inner.width * min(stage.time_share, 1.0)))
    busy = units.time(stage.forward_us + stage.backward_us)
    size, count = units.size(stage.memory_bytes), units.count(stage.parameters)
    nodes = (
        ink.label(name, title, name, ink.HEADING_SIZE, ink.INK, "left", "bold"),
        ink.label(f"{name} device", device, f"device {stage.device}", align="right"),
        Node(f"{name} time track", track, style=TRACK_STYLE),
        Node(f"{name} time bar", bar, style=BAR_STYLE),
        ink.label(f"{name} share", time, f"{units.share(stage.time_share)} of time", align="left"),
        ink.label(f"{name} duration", duration, f"fwd+bwd {busy}", align="right"),
        ink.label(f"{name} parameters", parameters, f"{count} params", align="left"),
        ink.label(f"{name} memory", memory, size, align="right"),
    )
    return Box(name, place, PANEL_STYLE, (*nodes, *panel.column.nodes), panel.column.boxes)


def _title(plan: Plan) -> tuple[Node, Node]:
    model, prediction = plan.model, plan.prediction
    step, backprop = units.time(prediction.step_us), units.time(prediction.backprop_us)
    facts = [
        f"{units.count(model.parameters)} parameters",
        f"batch {model.batch_size}",
        f"predicted: step {step}, one-device backprop {backprop}",
        f"speedup {prediction.speedup:.2f}×",
    ]
    text = " · ".join(facts)
    name_width = ink.text_width(model.name, ink.TITLE_SIZE, bold=True)
    text_width = ink.text_width(text, ink.SMALL_SIZE)
    name_place = Rectangle(0, 0, name_width, 14)
    text_place = Rectangle(0, 15, text_width, 10)
    return (
        ink.label("title", name_place, model.name, ink.TITLE_SIZE, ink.INK, "left", "bold"),
        ink.label("subtitle", text_place, text, align="left"),
    )
