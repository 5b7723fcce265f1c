"""What a recording is: the graph, the calls that were made, and why one may fail."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

PLAIN: tuple[type, ...] = (int, float, complex, bool, str, bytes, type(None), type(...))
PLAIN += (torch.dtype, torch.device, torch.memory_format, torch.layout)

# Names that emitted code uses for itself.
RESERVED = frozenset(
    {"self", "batch", "output", "torch", "F", "nn", "Tensor", "runtime", "PLAN", "STAGES"}
)


class ReadsData(Exception):
    """The model asked for the value of a tensor: the branch that follows cannot be recorded."""

    def __init__(self, function: str, scope: str, source: str) -> None:
        super().__init__(f"{function} at {source}")
        self.function = function
        self.scope = scope
        self.source = source


class Unencodable(Exception):
    """An argument or a result that cannot be written down."""

    def __init__(self, what: str, scope: str, source: str) -> None:
        super().__init__(f"{what} at {source}")
        self.what = what
        self.scope = scope
        self.source = source


@dataclass(frozen=True)
class Calls:
    """What happened in a recording of the finest grain, for recordings of coarser grain.

    Attributes:
        spans: range of events of the k-th call of the module at a path, by (path, k).
        names: name of the node of each function that was called, by its event.
        items: name of each item of a result of several tensors, by event and index.
    """

    spans: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    items: dict[tuple[int, Any], str] = field(default_factory=dict)


@dataclass(frozen=True)
class Recording:
    """A recorded run."""

    graph: fx.Graph
    calls: Calls


def item(container: Any, key: Any) -> Any:
    """Item of a result of several tensors; told apart from the user's own indexing."""
    return container[key]


def attributes(model: nn.Module) -> dict[int, str]:
    """Dotted path of every tensor that a module holds: parameters, buffers, plain attributes."""
    found: dict[int, str] = {}
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        holders = (module._parameters, module._buffers, vars(module))
        for holder in holders:
            for name, value in holder.items():
                if isinstance(value, Tensor):
                    found.setdefault(id(value), prefix + name)
    return found


def drop_unused_items(graph: fx.Graph) -> None:
    """Remove items of results that nobody used."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and node.target is item and not node.users:
            graph.erase_node(node)
