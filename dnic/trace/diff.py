"""Where two recordings of one model run other operations."""

from __future__ import annotations

from collections.abc import Iterator
from difflib import SequenceMatcher
from typing import Any

from torch import fx

from dnic.trace.recorded import Mode, recorded


def differences(train: fx.Graph, evaluation: fx.Graph) -> Iterator[tuple[list[fx.Node], Mode]]:
    """Runs of operations that only one mode has, in order."""
    for tag, a, b, c, d in opcodes(train, evaluation):
        if tag == "equal":
            continue
        if a < b:
            yield list(train.nodes)[a:b], "train"
        if c < d:
            yield list(evaluation.nodes)[c:d], "eval"


def opcodes(train: fx.Graph, evaluation: fx.Graph) -> list[tuple[str, int, int, int, int]]:
    """`difflib`'s opcodes from the operations of train mode to those of eval mode."""
    first, second = ([_key(node) for node in graph.nodes] for graph in (train, evaluation))
    return list(SequenceMatcher(None, first, second, autojunk=False).get_opcodes())


def _key(node: fx.Node) -> tuple[Any, ...]:
    return (node.op, node.target, recorded(node).scope, len(node.args), tuple(node.kwargs))
