"""A graph at another batch size than it was traced at: training often uses a larger one."""

from __future__ import annotations

from dataclasses import replace

from dnic.graph.graph import Graph, Operation, Value
from dnic.graph.shape import batch_multiple, elements


def at_batch(graph: Graph, batch_size: int) -> Graph:
    """The graph with bytes and FLOPs of another batch size.

    Bytes of tensors that follow the batch are exact; FLOPs, and bytes moved beside parameters, are
    taken to grow with it wherever the result does.

    Args:
        graph: at the traced batch size.
        batch_size: samples in a batch, at least 1.
    """
    if batch_size == graph.batch_size:
        return graph
    ratio = batch_size / graph.batch_size
    return replace(
        graph,
        batch_size=batch_size,
        operations=tuple(
            _operation(op, graph.batch_size, batch_size, ratio) for op in graph.operations
        ),
    )


def _operation(op: Operation, traced: int, wanted: int, ratio: float) -> Operation:
    if op.value is not None and not any(batch_multiple(size) for size in op.value.shape):
        return op
    fixed = min(op.parameter_bytes, op.bytes_moved)
    return replace(
        op,
        value=_value(op.value, traced, wanted) if op.value else None,
        forward_flops=round(op.forward_flops * ratio),
        bytes_moved=fixed + round((op.bytes_moved - fixed) * ratio),
    )


def _value(value: Value, traced: int, wanted: int) -> Value:
    count = elements(value.shape, traced)
    each = value.nbytes // count if count else 0
    return replace(value, nbytes=each * elements(value.shape, wanted))
