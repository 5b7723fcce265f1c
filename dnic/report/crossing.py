"""An interface between two stages: the activation going forward, its gradient coming back.

The activation is one edge from the operation that yields it to each operation that uses it. Under
it, one line tells how the gradient is obtained: a head whose prediction returns at once (dashed)
and which the true gradient reaches later (dotted), or the exact gradient that the sender waits
for (solid).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dnic.graph import shape
from dnic.graph.diagram import Edge, Node, Point, Rectangle, Style, Text
from dnic.partition.plan import PlannedHead, PlannedInterface, PlannedTensor
from dnic.report import ink, units
from dnic.report.column import LANE, Column, Lanes, lane_left

HEAD_WIDTH = 36.0
HEAD_HEIGHT = 18.0
LINE_HEIGHT = 10.0
GRADIENT_DROP = 44.0
MOST_TENSORS = 3

HEAD_STYLE = Style(stroke=ink.BLUE, fill=ink.PALE_BLUE, width=1.0)
HEAD_FEED = Style(stroke=ink.INK, width=0.75)


@dataclass(frozen=True)
class Panel:
    """A drawn stage: its frame, where its rows lie in it, and the node that stands for it.

    `entry_lane` is the outermost lane on the left, for tensors that come from below.
    """

    anchor: str
    place: Rectangle
    rows: Rectangle
    column: Column
    lanes: Lanes

    @property
    def entry_lane(self) -> float:
        """Where tensors from below run upwards to the operations that use them."""
        return lane_left(self.rows.left, self.lanes.count)

    def exit_lane(self, lane: int) -> float:
        """Where tensors run from the operation that yields them to the edge of the stage."""
        return self.rows.right + LANE * (lane + 1)


@dataclass(frozen=True)
class Crossing:
    """What is drawn of one interface, and how far down it reaches."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]
    bottom: float


def wanted_width(interface: PlannedInterface) -> float:
    """The width of the gap between two stages at which no text is shortened, in points."""
    name = ink.text_width(interface.name, ink.LABEL_SIZE, bold=True)
    texts = [ink.text_width(t, ink.SMALL_SIZE) for t in _tensor_lines(interface)]
    texts += [ink.text_width(t, ink.SMALL_SIZE) for t in _gradient_lines(interface)]
    return max(name, *texts) + 14


def text_height(interface: PlannedInterface) -> float:
    """Height of the lines above the activation between neighbours, in points."""
    return LINE_HEIGHT * (1 + len(_tensor_lines(interface))) + 4


def beside(
    interface: PlannedInterface,
    users: dict[str, frozenset[str]],
    ends: tuple[Panel, Panel],
    y: float,
) -> Crossing:
    """Draws an interface between neighbours, the activation at height `y`.

    `users` gives, for each tensor, the operations of the receiving stage that use it.
    """
    sender, receiver = ends

    def route(start: Point, end: Point) -> tuple[Point, ...]:
        lane = lane_left(receiver.rows.left, receiver.lanes.of_row.get(-1, 0))
        exit_x = sender.exit_lane(0)
        return (start, (exit_x, start[1]), (exit_x, y), (lane, y), (lane, end[1]), end)

    left, right = sender.place.right, receiver.place.left
    back = _Gradient(interface, ends, left, right, y + GRADIENT_DROP, 0.0)
    lines = _tensor_lines(interface)
    top = y - text_height(interface)
    place = Rectangle(left + 3, top, right - left - 6, LINE_HEIGHT)
    identity = _identity(interface)
    labels = [_name_label(interface, place), *_stacked(identity, "tensor", lines, place)]
    under = Rectangle(place.left, back.bottom - LINE_HEIGHT, place.width, LINE_HEIGHT)
    notes = _stacked(identity, "gradient", _gradient_lines(interface), under)
    bottom = (notes[-1].place if notes else under).bottom
    forward = _forward(interface, users, ends, route)
    return Crossing((*labels, *back.nodes(), *notes), (*forward, *back.edges()), bottom)


def below(
    interface: PlannedInterface,
    users: dict[str, frozenset[str]],
    ends: tuple[Panel, Panel],
    top: float,
) -> Crossing:
    """Draws an interface that skips stages, from height `top` on, below all stages."""
    sender, receiver = ends
    out, into = sender.exit_lane(1), receiver.entry_lane
    y = top + LINE_HEIGHT + 6

    def route(start: Point, end: Point) -> tuple[Point, ...]:
        return (start, (out, start[1]), (out, y), (into, y), (into, end[1]), end)

    # The way back lies outside of the way there, so that the two never cross.
    back_y = y + HEAD_HEIGHT + 8
    back = _Gradient(interface, ends, out - LANE, into + LANE, back_y, back_y - sender.place.bottom)
    place = Rectangle(out + 3, top, into - out - 6, LINE_HEIGHT)
    under = Rectangle(place.left, back.bottom, place.width, LINE_HEIGHT)
    above = [interface.name, *_tensor_lines(interface)]
    note = _gradient_lines(interface)
    if not back.passes:
        above, note, under = [*above, *note], [], Rectangle(place.left, y, place.width, 0)
    identity = _identity(interface)
    labels = [
        ink.label(identity, place, " · ".join(above), color=ink.INK),
        ink.label(f"{identity} gradient", under, " · ".join(note)),
    ]
    forward = _forward(interface, users, ends, route)
    return Crossing((*labels, *back.nodes()), (*forward, *back.edges()), under.bottom)


@dataclass(frozen=True)
class _Gradient:
    """The way of the gradient at height `y`, from `right` to `left`.

    `rise` is how far both ends are carried upwards to reach the stages; 0 when they are beside.
    """

    interface: PlannedInterface
    ends: tuple[Panel, Panel]
    left: float
    right: float
    y: float
    rise: float

    @property
    def passes(self) -> bool:
        """Whether any tensor has a gradient."""
        return bool(self.interface.differentiable)

    @property
    def bottom(self) -> float:
        """The lower end of what is drawn."""
        return self.y + HEAD_HEIGHT / 2 + 4 if self.passes else self.y - HEAD_HEIGHT

    @property
    def head(self) -> Rectangle:
        """The place of the head, in the middle."""
        middle = (self.left + self.right) / 2
        return Rectangle(middle - HEAD_WIDTH / 2, self.y - HEAD_HEIGHT / 2, HEAD_WIDTH, HEAD_HEIGHT)

    def nodes(self) -> list[Node]:
        """The head and the names of the gradients above their lines."""
        if not self.passes:
            return []
        name, head = _identity(self.interface), self.head

        def above(start: float, end: float, suffix: str, text: str, color: str) -> Node:
            place = Rectangle(start, self.y - LINE_HEIGHT - 2.5, end - start, LINE_HEIGHT)
            return ink.label(f"{name} {suffix}", place, text, color=color)

        late = f"g(t−{self.interface.window})"
        if not self.interface.predicted:
            text = "g(t)" if self.interface.gradient == "exact" else late
            return [above(self.left, self.right, "g", text, ink.ORANGE)]
        shown = Node(
            f"{name} head",
            head,
            Text(_what_predicts(self.interface), ink.LABEL_SIZE, ink.INK),
            HEAD_STYLE,
            "hexagon",
            ", ".join(_gradient_lines(self.interface)),
        )
        predicted = above(self.left, head.left, "predicted", "ĝ(t)", ink.BLUE)
        if not self.interface.return_every:
            return [shown, predicted]
        return [shown, predicted, above(head.right, self.right, "true", late, ink.ORANGE)]

    def edges(self) -> list[Edge]:
        """The predicted and the true gradient, or the exact one."""
        if not self.passes:
            return []
        sender, receiver = (end.anchor for end in self.ends)
        left: list[Point] = [(self.left, self.y)]
        right: list[Point] = [(self.right, self.y)]
        if self.rise:
            left.append((self.left, self.y - self.rise))
            right.insert(0, (self.right, self.y - self.rise))
        if self.interface.gradient == "exact":
            return [Edge(receiver, sender, (*right, *left), ink.EXACT, tooltip="exact gradient")]
        if self.interface.gradient == "stale":
            return [Edge(receiver, sender, (*right, *left), ink.TRUE, tooltip="late gradient")]
        head, name = self.head, f"{_identity(self.interface)} head"
        middle = head.middle[0]
        feed = ((middle, self.y - GRADIENT_DROP), (middle, head.top))
        if self.rise:
            feed = ((middle, head.top - 8), (middle, head.top))
        edges = [
            Edge(sender, name, feed, HEAD_FEED, tooltip="activation seen by the head"),
            Edge(name, sender, ((head.left, self.y), *left), ink.PREDICTED, tooltip="predicted"),
        ]
        if self.interface.return_every:
            true = Edge(receiver, name, (*right, (head.right, self.y)), ink.TRUE, tooltip="true")
            edges.append(true)
        return edges


def _forward(
    interface: PlannedInterface,
    users: dict[str, frozenset[str]],
    ends: tuple[Panel, Panel],
    route: Callable[[Point, Point], tuple[Point, ...]],
) -> list[Edge]:
    """From the operation that yields each tensor to each row that uses it; each line once."""
    sender, receiver = (end.column for end in ends)
    edges: dict[tuple[Point, Point], Edge] = {}
    for tensor in interface.tensors:
        source = sender.place_of.get(tensor.name)
        # A tensor that only passes through a stage has no operation there.
        start = (
            (source.right, source.middle[1]) if source else (ends[0].place.right, ends[0].rows.top)
        )
        tail = sender.node_of.get(tensor.name, ends[0].anchor)
        for user in sorted(users.get(tensor.name, ())):
            target = receiver.place_of[user]
            end = (target.left, target.middle[1])
            edges[start, end] = Edge(
                tail,
                receiver.node_of[user],
                route(start, end),
                ink.FORWARD if tensor.differentiable else ink.INSIDE,
                tooltip=f"{tensor.name} {shape.text(tensor.shape)} {tensor.dtype}",
            )
    return list(edges.values())


def _identity(interface: PlannedInterface) -> str:
    return f"interface {interface.source}-{interface.to} {interface.name}"


def _name_label(interface: PlannedInterface, place: Rectangle) -> Node:
    return ink.label(
        _identity(interface), place, interface.name, ink.LABEL_SIZE, ink.INK, face="bold"
    )


def _stacked(name: str, what: str, lines: Sequence[str], above: Rectangle) -> list[Node]:
    """One label for each line, the first one under the place `above`."""
    return [
        ink.label(
            f"{name} {what} {i}",
            Rectangle(above.left, above.bottom + i * LINE_HEIGHT, above.width, LINE_HEIGHT),
            line,
        )
        for i, line in enumerate(lines)
    ]


def _tensor_lines(interface: PlannedInterface) -> list[str]:
    tensors, total = interface.tensors, units.size(interface.nbytes)
    if len(tensors) == 1:
        return [shape.text(tensors[0].shape), total]
    lines = [f"{t.name} {shape.text(t.shape)}" for t in tensors[:MOST_TENSORS]]
    return [*lines, f"{len(tensors)} tensors, {total}"]


def _gradient_lines(interface: PlannedInterface) -> list[str]:
    if not interface.differentiable:
        return ["no gradient"]
    if interface.gradient == "exact":
        return ["exact gradient", "sender waits"]
    gone = interface.gradient == "none"
    lines = ["no gradient passes" if gone else f"{interface.gradient} gradient"]
    if interface.warmup != "exact":
        lines.append(f"begins with {interface.warmup}")
    if interface.head:
        lines += head_lines(interface.head, interface.context)
    return [*lines, f"window {interface.window}"]


def _what_predicts(interface: PlannedInterface) -> str:
    if interface.gradient == "none":
        return "0"
    return "tail" if interface.gradient in ("virtual", "local") else "head"


def head_lines(head: PlannedHead, context: Sequence[PlannedTensor] = ()) -> list[str]:
    """A head in a few words: its layers, its size, what it sees."""
    layers = {0: "linear", 1: "1 hidden layer"}.get(
        head.hidden_layers, f"{head.hidden_layers} hidden layers"
    )
    rank = f"rank {head.width}" if head.width else "full rank"
    names = ["target"] * (head.context == "target") + [tensor.name for tensor in context]
    seen = f"sees {', '.join(names)}" if names else "no context"
    return [f"{layers}, {rank}", f"{units.count(head.parameters)} params, {seen}"]
