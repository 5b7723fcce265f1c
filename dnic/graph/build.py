"""From a captured model to the compiler's own graph, and the checker of both."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import networkx as nx
from torch import fx, nn

from dnic.errors import TraceError
from dnic.graph.graph import Graph, Kind, Operation, Value, Weight
from dnic.graph.place import blocked_gaps, free_nodes
from dnic.trace import (
    BatchShare,
    BatchSize,
    Recorded,
    TracedModel,
    field_of,
    item,
    leaves,
    qualified_name,
    recorded,
)

KINDS: dict[str, Kind] = {
    "placeholder": "input",
    "call_module": "module",
    "call_function": "function",
    "call_method": "method",
    "get_attr": "attribute",
    "output": "output",
}


def build_graph(traced: TracedModel, fine: TracedModel | None = None) -> Graph:
    """The graph of a captured model.

    Args:
        traced: the capture.
        fine: where `traced` is coarse, the fine capture of the same model, whose positions the
            `span` of each operation then counts.

    Raises:
        TraceError: the graph is not one (`check_graph`), with the printed capture.
    """
    nodes = list(traced.graph.nodes)
    starts = _starts(list(fine.graph.nodes) if fine else nodes)
    names = _first_names(traced.module)
    free = free_nodes(nodes)
    operations = []
    for position, node in enumerate(nodes):
        facts = recorded(node)
        operation = _operation(node, facts, traced, names, _span(node, position, facts, starts))
        operations.append(replace(operation, free=node in free))
    graph = Graph(
        name=traced.name,
        batch_size=traced.batch_size,
        operations=tuple(operations),
        blocked=blocked_gaps(nodes, traced, free),
        weights=_weights(traced.module, names),
    )
    check_graph(graph)
    return graph


def event_of_gap(traced: TracedModel, gap: int) -> int:
    """The number of the call before which a gap of the fine graph lies."""
    return recorded(list(traced.graph.nodes)[gap]).event[0]


def check_graph(graph: Graph) -> None:
    """Refuse a graph with a cycle, a missing name, a name twice, or not exactly one output.

    Raises:
        TraceError: with the printed graph.
    """
    seen: set[str] = set()
    for op in graph.operations:
        missing = [name for name in op.inputs if name not in seen]
        if missing or op.name in seen:
            what = f"uses {missing[0]} before it exists" if missing else "stands twice"
            raise TraceError(f"operation {op.name} {what}\n{print_graph(graph)}")
        seen.add(op.name)
    if [op.kind for op in graph.operations].count("output") != 1:
        raise TraceError(f"a graph has one output\n{print_graph(graph)}")
    if not nx.is_directed_acyclic_graph(graph.networkx()):
        raise TraceError(f"the graph has a cycle\n{print_graph(graph)}")


def print_graph(graph: Graph) -> str:
    """The graph as text, one operation a line."""
    lines = [f"{graph.name} at batch size {graph.batch_size}"]
    for position, op in enumerate(graph.operations):
        shape = f"  {op.value.dtype}{list(op.value.shape)}" if op.value else ""
        lines.append(
            f"  {position:4} {op.kind:9} {op.name} = {op.target}({', '.join(op.inputs)}){shape}"
        )
        if position in graph.blocked:
            lines.append(f"       no cut before it: {graph.blocked[position]}")
    return "\n".join(lines)


def _operation(
    node: fx.Node,
    facts: Recorded,
    traced: TracedModel,
    names: dict[int, str],
    span: tuple[int, int],
) -> Operation:
    parameters = _parameters(node, traced.module)
    tensor = facts.tensor
    value = None
    if tensor is not None and node.name in traced.shapes:
        value = Value(
            name=node.name,
            shape=traced.shapes[node.name],
            dtype=str(tensor.dtype).removeprefix("torch."),
            nbytes=tensor.nbytes,
            differentiable=tensor.requires_grad,
        )
    target = node.target if isinstance(node.target, str) else qualified_name(node.target)
    if node.target in (item, field_of):
        target = "item"
    return Operation(
        name=node.name,
        kind=KINDS[node.op],
        target=target,
        module=facts.scope,
        module_class=facts.module_class,
        inputs=tuple(n.name for n in node.all_input_nodes),
        value=value,
        parameters=tuple(dict.fromkeys(names[id(p)] for p in parameters)),
        parameter_bytes=sum(p.numel() * p.element_size() for p in parameters),
        forward_flops=facts.flops,
        bytes_moved=facts.bytes_read + (tensor.nbytes if tensor else 0),
        span=span,
        source=facts.source,
        uses_batch=any(isinstance(leaf, BatchSize | BatchShare) for leaf in leaves_of(node)),
    )


def leaves_of(node: fx.Node) -> Iterator[Any]:
    """Every argument of a node, out of its nested structures."""
    return leaves((node.args, node.kwargs))


def _parameters(node: fx.Node, model: nn.Module) -> list[nn.Parameter]:
    """Parameters that a node uses itself, each once."""
    if node.op == "call_module":
        return list(model.get_submodule(str(node.target)).parameters())
    if node.op == "get_attr":
        path, _, name = str(node.target).rpartition(".")
        held = getattr(model.get_submodule(path), name)
        return [held] if isinstance(held, nn.Parameter) else []
    return []


def _first_names(model: nn.Module) -> dict[int, str]:
    """The first dotted name of every parameter; tied ones keep one."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def _weights(model: nn.Module, names: dict[int, str]) -> dict[str, Weight]:
    """Every parameter by its first name."""
    aliases: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if names[id(parameter)] != name:
            aliases.setdefault(names[id(parameter)], []).append(name)
    return {
        name: Weight(
            name=name,
            aliases=tuple(aliases.get(name, ())),
            nbytes=parameter.numel() * parameter.element_size(),
            trained=parameter.requires_grad,
        )
        for name, parameter in model.named_parameters()
    }


def _starts(fine: list[fx.Node]) -> list[int]:
    """Number of the call that each node of the fine capture belongs to; never falling."""
    return [recorded(node).event[0] if node.op != "placeholder" else -1 for node in fine]


def _span(node: fx.Node, position: int, facts: Recorded, starts: list[int]) -> tuple[int, int]:
    last = len(starts) - 1
    if node.op == "placeholder":
        return (position, position + 1)
    if node.op == "output":
        return (last, last + 1)
    first = bisect_left(starts, facts.event[0])
    if facts.event[0] == facts.event[1]:
        return (min(first, last), min(first + 1, last + 1))
    return (first, bisect_left(starts, facts.event[1]))
