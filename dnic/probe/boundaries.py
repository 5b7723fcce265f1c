"""One training step of the whole model that notes what every probed cut would have.

At a cut, what crosses is handed on as a copy, as a stage receives it, and the gradient of the copy
is what the part behind the cut would send back. The gradient of the tensor itself would not do:
where a residual stream is cut inside a block, it holds what comes back from this side, too.
Cuts that follow one another hand on copies of copies, which changes no value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.autograd import backward

from dnic.cost.operation import map_leaves
from dnic.cost.walk import Call, walk
from dnic.graph.graph import Graph
from dnic.probe.candidates import Candidate
from dnic.runtime.links import dtype_named
from dnic.trace import TracedModel, select


@dataclass
class Crossed:
    """What crossed one cut in one step.

    Attributes:
        handed: the differentiable tensors with their history, in the cut's order.
        gradients: of the loss with respect to what the part behind the cut made of them; None
            before the backward pass, and where none comes back.
        dtypes: planned ones; under autocast those of `handed` may differ.
    """

    handed: list[Tensor] = field(default_factory=list)
    gradients: list[Tensor | None] = field(default_factory=list)
    dtypes: list[torch.dtype] = field(default_factory=list)

    def tensors(self) -> list[Tensor]:
        """What a head sees: detached, of the planned dtypes."""
        return [t.detach().to(d) for t, d in zip(self.handed, self.dtypes, strict=True)]

    def true(self) -> list[Tensor]:
        """The true gradients, of the planned dtypes."""
        return [
            torch.zeros_like(tensor, dtype=dtype) if gradient is None else gradient.to(dtype)
            for tensor, gradient, dtype in zip(
                self.handed, self.gradients, self.dtypes, strict=True
            )
        ]


class Boundaries:
    """Runs a capture with copies at cuts.

    Args:
        traced: the fine capture, in train mode.
        graph: of the same capture.
        cuts: in execution order.
    """

    def __init__(self, traced: TracedModel, graph: Graph, cuts: Sequence[Candidate]) -> None:
        self._traced = traced
        self._positions = graph.position
        self._cuts = cuts
        self._meant = {node.name: _meant(node).name for node in traced.graph.nodes}
        self._wanted = {
            self._meant[value.name] for cut in cuts for value in cut.point.differentiable
        }

    def forward(self, inputs: Any, batch_size: int) -> Pass:
        """One forward pass, ready to go back.

        Args:
            inputs: a batch as the model takes it.
            batch_size: samples in it.

        Raises:
            DnicError: an operation fails; it is named.
        """
        made = Pass(self._positions, self._cuts, self._meant, self._wanted)
        output = walk(self._traced, inputs, batch_size, made.visit)
        made.output = map_leaves(output, made.current)
        return made


def gradients_before(
    crossed: Crossed, gradients: Sequence[Tensor], parameters: Sequence[Tensor]
) -> list[Tensor | None]:
    """Gradients of the parameters before a cut that follow from those of what crosses it.

    The graph stays; None for parameters that nothing comes back to.

    Args:
        crossed: of a step whose parameters have not been updated yet.
        gradients: of the crossing tensors, true or predicted.
        parameters: in use before the cut.
    """
    pairs = [
        (tensor, gradient.to(tensor.dtype))
        for tensor, gradient in zip(crossed.handed, gradients, strict=True)
        if tensor.requires_grad
    ]
    if not pairs or not parameters:
        return [None] * len(parameters)
    return list(
        torch.autograd.grad(
            [tensor for tensor, _ in pairs],
            list(parameters),
            [gradient for _, gradient in pairs],
            retain_graph=True,
            allow_unused=True,
        )
    )


class Pass:
    """A batch on its way through the model and back.

    Attributes:
        output: of the model.
        crossed: what crossed each cut; with gradients after `backward`.
    """

    def __init__(
        self,
        positions: Mapping[str, int],
        cuts: Sequence[Candidate],
        meant: Mapping[str, str],
        wanted: set[str],
    ) -> None:
        self.output: Any = None
        self.crossed: list[Crossed] = []
        # Later passes through the same graph, from predicted gradients, are not noted.
        self._listening = False
        self._positions = positions
        self._waiting = list(cuts)
        self._meant = meant
        self._wanted = wanted
        self._results: dict[str, Tensor] = {}
        # By identity, with the tensor itself, so that its identity stays its own.
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    def backward(self, loss: Tensor, *, keep_graph: bool = False) -> None:
        """The backward pass of the loss, into the parameters' `grad`."""
        self._listening = True
        backward([loss], retain_graph=keep_graph)
        self._listening = False

    def visit(self, call: Call) -> Any:
        """Run one operation on what the part that it belongs to has in its hands."""
        while self._waiting and self._waiting[0].point.gap <= self._positions[call.node.name]:
            self.crossed.append(self._cross(self._waiting.pop(0)))
        args, kwargs = map_leaves(call.args, self.current), map_leaves(call.kwargs, self.current)
        with torch.set_grad_enabled(call.grad):
            out = call.function(*args, **kwargs)
        if call.node.name in self._wanted:
            self._results[call.node.name] = out
        return out

    def current(self, leaf: Any) -> Any:
        """What stands for a tensor behind the last cut that it crossed."""
        if isinstance(leaf, Tensor) and id(leaf) in self._copies:
            return self._copies[id(leaf)][1]
        return leaf

    def _cross(self, cut: Candidate) -> Crossed:
        crossed = Crossed()
        for place, value in enumerate(cut.point.differentiable):
            original = self._results[self._meant[value.name]]
            handed = self.current(original)
            crossed.handed.append(handed)
            crossed.gradients.append(None)
            crossed.dtypes.append(dtype_named(value.dtype))
            if handed.requires_grad:
                copy = handed.clone()
                copy.register_hook(self._noting(crossed, place))
                self._copies[id(original)] = (original, copy)
        return crossed

    def _noting(self, crossed: Crossed, place: int) -> Any:
        def note(gradient: Tensor) -> None:
            if self._listening:
                crossed.gradients[place] = gradient.detach()

        return note


def _meant(node: fx.Node) -> fx.Node:
    """The operation whose result a node stands for in training."""
    while node.target is select and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node
