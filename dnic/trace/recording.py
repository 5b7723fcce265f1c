"""What a recording is: the graph, and the calls that were made."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from dnic.trace.functions import draws
from dnic.trace.recorded import recorded

PLAIN: tuple[type, ...] = (int, float, complex, bool, str, bytes, type(None), type(...))
PLAIN += (torch.dtype, torch.device, torch.memory_format, torch.layout)

# Names that emitted code uses for itself.
RESERVED = frozenset(
    {"self", "batch", "output", "torch", "F", "nn", "Tensor", "runtime", "PLAN", "STAGES"}
)


@dataclass(frozen=True)
class Calls:
    """What happened in a recording of the finest grain, for recordings of coarser grain.

    Attributes:
        spans: range of events of the k-th call of the module at a path, by (path, k).
        names: name of the node of each function that was called, by its event.
        items: name of each item of a result of several tensors, by event and index.
        opaque: paths of modules that took or gave objects that cannot be written down (a cache);
            they are opened in coarser recordings too.
    """

    spans: dict[tuple[str, int], tuple[int, int]] = field(default_factory=dict)
    names: dict[int, str] = field(default_factory=dict)
    items: dict[tuple[int, Any], str] = field(default_factory=dict)
    opaque: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class Recording:
    """A recorded run.

    `opened` are the paths of the modules whose forward was written down, `checks` the lines of
    those checks on data that it passed (`if labels.max() > n: raise`).
    """

    graph: fx.Graph
    calls: Calls
    opened: set[str] = field(default_factory=set)
    checks: set[str] = field(default_factory=set)


def item(container: Any, key: Any) -> Any:
    """Item of a result of several tensors; told apart from the user's own indexing."""
    return container[key]


def field_of(container: Any, name: str) -> Any:
    """Field of a result that is a dataclass; told apart from the user's own attributes."""
    return getattr(container, name)


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


def short_names(paths: list[str]) -> dict[str, str]:
    """For every dotted path its shortest ending that no other path has: `layers_3`."""
    endings: Counter[tuple[str, ...]] = Counter()
    split = {path: tuple(path.split(".")) for path in paths}
    for parts in split.values():
        endings.update(parts[i:] for i in range(len(parts)))
    names = {}
    for path, parts in split.items():
        starts = [i for i in range(len(parts)) if not parts[i].isdigit()]
        unique = [i for i in starts if endings[parts[i:]] == 1]
        names[path] = "_".join(parts[unique[-1] :] if unique else parts)
    return names


def drop_unused(graph: fx.Graph) -> None:
    """Remove results that nobody used: items, and what only a check on data looked at.

    Modules stay, and so do changes in place and draws: these leave something behind.
    """
    for node in reversed(list(graph.nodes)):
        pure = node.op in ("call_function", "call_method") and not recorded(node).mutated
        if pure and not node.users and not draws(node.target):
            graph.erase_node(node)
