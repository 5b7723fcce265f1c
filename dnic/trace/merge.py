"""Two recordings of one model, in train and in eval mode, merged where they run other operations.

Most models do the same in both modes but for a flag (`align`), or differ in a small module that is
kept whole. Where the model itself says `if self.training:` (an auxiliary head, a loss that is only
computed in training) both recordings are kept: operations of one mode are marked, and where a later
one takes another input in each mode, `select` stands between.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import fx

from dnic.trace.align import ModeSwitch
from dnic.trace.diff import opcodes
from dnic.trace.recorded import KEY, Mode, recorded

Nodes = dict[fx.Node, fx.Node]


def select(train: Any, evaluation: Any) -> Any:
    """Stands for `train if self.training else evaluation`."""
    raise AssertionError("only written, never called")


def merge_modes(train: fx.Graph, evaluation: fx.Graph) -> tuple[fx.Graph, Nodes, Nodes]:
    """One graph for both modes.

    Returns:
        The graph, and for the nodes of each recording the node that stands for it.
    """
    merger = _Merger()
    ours, theirs = list(train.nodes), list(evaluation.nodes)
    for tag, a, b, c, d in opcodes(train, evaluation):
        if tag == "equal":
            for first, second in zip(ours[a:b], theirs[c:d], strict=True):
                merger.common(first, second)
            continue
        for node in ours[a:b]:
            merger.only(node, "train")
        for node in theirs[c:d]:
            merger.only(node, "eval")
    return merger.graph, merger.train, merger.evaluation


class _Merger:
    """Writes the merged graph, operation by operation."""

    def __init__(self) -> None:
        self.graph = fx.Graph()
        self.train: Nodes = {}
        self.evaluation: Nodes = {}
        self.event = 0

    def common(self, first: fx.Node, second: fx.Node) -> None:
        """An operation of both modes."""
        self.event = recorded(first).event[0]
        args = self._both(first.args, second.args)
        kwargs = self._both(first.kwargs, second.kwargs)
        node = self.graph.create_node(first.op, first.target, args, kwargs, name=first.name)
        node.meta[KEY] = recorded(first)
        self.train[first] = self.evaluation[second] = node
        self.event = recorded(first).event[1]

    def only(self, node: fx.Node, mode: Mode) -> None:
        """An operation of one mode."""
        known = self.train if mode == "train" else self.evaluation
        args = _mapped(node.args, known)
        kwargs = _mapped(node.kwargs, known)
        made = self.graph.create_node(node.op, node.target, args, kwargs, name=node.name)
        made.meta[KEY] = replace(recorded(node), mode=mode)
        if mode == "eval":
            # Costs are those of training; events are counted there.
            event = (self.event, self.event)
            made.meta[KEY] = replace(made.meta[KEY], event=event, flops=0, bytes_read=0)
        else:
            self.event = recorded(node).event[1]
        known[node] = made

    def _both(self, a: Any, b: Any) -> Any:
        """Arguments of a common operation; a `select` where they differ in more than a constant."""
        if isinstance(a, dict) and isinstance(b, dict) and list(a) == list(b):
            return {key: self._both(a[key], b[key]) for key in a}
        if isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
            merged = [self._both(x, y) for x, y in zip(a, b, strict=True)]
            return tuple(merged) if isinstance(a, tuple) else merged
        if not _nodes_in(a) and not _nodes_in(b):
            same = type(a) is type(b) and (a == b or (a != a and b != b))
            return a if same else ModeSwitch(a, b)
        ours, theirs = _mapped(a, self.train), _mapped(b, self.evaluation)
        if ours is theirs:
            return ours
        name = a.name if isinstance(a, fx.Node) else "result"
        node = self.graph.create_node("call_function", select, (ours, theirs), {}, name=name)
        shown = next(iter(_nodes_in(ours)), None) or next(iter(_nodes_in(theirs)))
        node.meta[KEY] = replace(
            recorded(shown),
            event=(self.event, self.event),
            tensor=recorded(ours).tensor if isinstance(ours, fx.Node) else None,
            flops=0,
            bytes_read=0,
            mutated=frozenset(),
            mode="",
            items=0,
        )
        return node


def _mapped(value: Any, known: Nodes) -> Any:
    return fx.map_arg(value, lambda node: known[node])


def _nodes_in(value: Any) -> list[fx.Node]:
    found: list[fx.Node] = []
    fx.map_arg(value, lambda node: found.append(node))
    return found
