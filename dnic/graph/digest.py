"""Which model a graph is of: a digest that tells whether something measured belongs to it.

Weights, batch size and the place of the model file do not count; what the model computes, in which
order, under which names and with which shapes, does.
"""

from __future__ import annotations

import hashlib
import json

from dnic.graph.graph import Graph


def graph_digest(graph: Graph) -> str:
    """SHA-256 of the operations, in hexadecimal digits."""
    operations = [
        [
            op.name,
            op.kind,
            op.target,
            op.module,
            op.inputs,
            op.parameters,
            [op.value.shape, op.value.dtype, op.value.differentiable] if op.value else None,
        ]
        for op in graph.operations
    ]
    weights = [[w.name, w.aliases, w.nbytes, w.trained] for w in graph.weights.values()]
    text = json.dumps([graph.name, operations, weights])
    return hashlib.sha256(text.encode()).hexdigest()
