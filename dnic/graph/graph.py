"""The compiler's own graph: operations in execution order, and the values that pass between them.

torch.fx keeps what is needed to *run* a model; a partition needs what it *costs* and what crosses a
cut. This graph keeps just that, as frozen data over networkx. A *gap* `g` lies before operation
`g`: the operations `[0, g)` come before the cut, `[g, n)` after it. Because the operations are in
execution order, every gap splits the graph into two parts with all edges pointing forward.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import networkx as nx

from dnic.graph.shape import Shape

# Why a gap that parts a call from its results must not be cut.
INSIDE_A_CALL = "it lies inside one call"

Kind = Literal["input", "module", "function", "method", "attribute", "output"]


@dataclass(frozen=True)
class Value:
    """A tensor that an operation yields.

    Attributes:
        name: the name of the operation that yields it (unique in the graph).
        shape: sizes, those that follow the batch symbolic.
        dtype: torch's name without the prefix, such as `float32`.
        nbytes: bytes at the traced batch size.
        differentiable: whether a gradient flows back through it.
    """

    name: str
    shape: Shape
    dtype: str
    nbytes: int
    differentiable: bool


@dataclass(frozen=True)
class Operation:
    """One node of the traced model.

    Attributes:
        name: unique, a valid Python identifier, made from the user's own names (`layers_3`).
        kind: what sort of node.
        target: dotted path of the module, parameter or buffer; qualified name of the function.
        module: dotted path of the innermost module in whose `forward` it ran ("" is the model
            itself); for kind `module` the module's own path.
        module_class: class name of that module.
        inputs: names of the operations whose results it uses, each once, in order of use.
        value: the tensor it yields; None when it yields something else (a size, a tuple).
        parameters: dotted names of the parameters it uses, by their first name in the model.
        parameter_bytes: bytes of these parameters.
        forward_flops: floating point operations of the forward pass at the traced batch size.
        bytes_moved: bytes read and written by the forward pass, parameters included.
        span: half-open range of positions in the fine recording that it covers; (i, i + 1) there.
        source: `file:line` of the user's code that ran it, for messages.
        uses_batch: whether one of its arguments follows from the number of samples.
        free: whether it follows from constants alone (positions, a causal mask): each stage that
            uses it computes it again, which costs less than a message.
    """

    name: str
    kind: Kind
    target: str
    module: str = ""
    module_class: str = ""
    inputs: tuple[str, ...] = ()
    value: Value | None = None
    parameters: tuple[str, ...] = ()
    parameter_bytes: int = 0
    forward_flops: int = 0
    bytes_moved: int = 0
    span: tuple[int, int] = (0, 0)
    source: str = ""
    uses_batch: bool = False
    free: bool = False


@dataclass(frozen=True)
class Weight:
    """A parameter of the model.

    Attributes:
        name: the first of its dotted names.
        aliases: its other names (tied weights).
        nbytes: its size.
        trained: whether it collects a gradient.
    """

    name: str
    aliases: tuple[str, ...]
    nbytes: int
    trained: bool


@dataclass(frozen=True)
class Graph:
    """Operations in execution order.

    Attributes:
        name: the model's class name.
        batch_size: batch size of the example inputs.
        operations: in the order in which the model ran them; inputs first, `output` last.
        blocked: for each gap that must not be cut, the reason (an in-place operation later changes
            a tensor that crosses it, a value that is not a tensor crosses it).
        weights: every parameter of the model, by its first name.
    """

    name: str
    batch_size: int
    operations: tuple[Operation, ...]
    blocked: dict[int, str] = field(default_factory=dict)
    weights: dict[str, Weight] = field(default_factory=dict)

    @cached_property
    def by_name(self) -> dict[str, Operation]:
        """Operations by name."""
        return {op.name: op for op in self.operations}

    @cached_property
    def position(self) -> dict[str, int]:
        """Position of each operation by name."""
        return {op.name: i for i, op in enumerate(self.operations)}

    @cached_property
    def last_use(self) -> dict[str, int]:
        """Position of the last operation that uses each one's result; its own when unused."""
        last = dict(self.position)
        for i, op in enumerate(self.operations):
            for name in op.inputs:
                last[name] = i
        return last

    def crossing(self, gap: int) -> tuple[Operation, ...]:
        """Operations before `gap` whose results are used at or after it, in execution order."""
        return tuple(op for op in self.operations[:gap] if self.last_use[op.name] >= gap)

    def networkx(self) -> nx.DiGraph[str]:
        """The same graph for graph algorithms; node attribute `op` is the operation."""
        graph: nx.DiGraph[str] = nx.DiGraph()
        for op in self.operations:
            graph.add_node(op.name, op=op)
            graph.add_edges_from((name, op.name) for name in op.inputs)
        return graph
