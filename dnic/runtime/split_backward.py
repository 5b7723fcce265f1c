"""A backward pass in two parts: first the gradients of the inputs, later those of the parameters.

Zero-bubble schedules (Qi et al. 2023, arXiv 2401.10241) send the gradient of a stage's input on as
soon as it is there and fill their waits with the rest. `torch.distributed.pipelining` cuts a graph
in the same way, but its cut silently loses the gradient of a parameter that no way from the input
meets, runs hooks on tensors twice, stops half-way where a parameter is used at several places
beside others, and detaches outputs in place, which views refuse. So torch's stage is kept and the
cut is made here:

    first   the nodes on a way from an output to an input run, as far as the inputs go; those from
            which a way to parameters branches off keep the gradient that came in
    later   from each such node, the kept gradient goes down the branches; into `.grad`, as ever

Branches that meet are gone down together, with every node's gradient held at what it was the first
time, so that nothing is counted twice. What has no way to an input waits as a whole. The graph is
kept until the second part is over, which is what these schedules pay for their shorter waits.

A node that cannot tell the two parts apart (a compiled forward, `nn.LSTM` on some devices) does its
whole work twice; one whose backward may run only once (checkpoints that are reentrant) is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge
from torch.distributed.pipelining import PipelineStage

from dnic.errors import RuntimeFault

Gradients = tuple[Tensor | None, ...]
Root = tuple[GradientEdge, Tensor]


@dataclass
class Branches:
    """Parameters that are reached together, and from where.

    Attributes:
        nodes: where their branches leave the ways to the inputs.
        roots: outputs from which no way leads to an input, with their gradients.
        parameters: at the ends.
    """

    nodes: list[Node] = field(default_factory=list)
    roots: list[Root] = field(default_factory=list)
    parameters: list[Tensor] = field(default_factory=list)


class Deferred:
    """The second part of a backward pass.

    Args:
        branches: that share nothing with one another.
    """

    def __init__(self, branches: Sequence[Branches]) -> None:
        self._branches = list(branches)
        self._kept: dict[Node, Gradients] = {}

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """While the first part runs, what comes into the nodes is kept."""
        nodes = [node for branches in self._branches for node in branches.nodes]
        with _prehooks(nodes, self._keep):
            yield

    def run(self) -> None:
        """Adds the parameters' gradients to their `.grad`; once."""
        for branches in self._branches:
            roots = list(branches.roots)
            for node in branches.nodes:
                kept = self._kept.get(node, ())
                roots += [
                    (GradientEdge(node, place), gradient)
                    for place, gradient in enumerate(kept)
                    if gradient is not None
                ]
            if not roots:
                continue
            with _prehooks(branches.nodes, lambda node, _: self._kept.get(node)):
                torch.autograd.backward(
                    [edge for edge, _ in roots],
                    [gradient for _, gradient in roots],
                    retain_graph=True,  # other branches may cross the same nodes
                    inputs=branches.parameters,
                )
        self._branches, self._kept = [], {}

    def _keep(self, node: Node, gradients: Gradients) -> None:
        self._kept[node] = gradients


class SplitStage(PipelineStage):
    """torch's stage with this backward pass in place of its own.

    Attributes:
        whole: do all of it at once, in the first part, where the second would compute the stage's
            activations once more.
    """

    whole = False

    def backward_maybe_with_nosync(
        self, backward_type: str, bwd_kwargs: dict[str, Any], last_backward: bool = False
    ) -> Any:
        """What torch's schedules call: `full`, `input` or `weight`."""
        if backward_type == "full":
            return super().backward_maybe_with_nosync(backward_type, bwd_kwargs, last_backward)
        try:
            if backward_type == "weight":
                bwd_kwargs["param_groups"].run()
                return (), None
            given = (bwd_kwargs[key] for key in ("stage_output", "output_grads", "input_values"))
            return (backward_whole if self.whole else backward_inputs)(*given)
        except RuntimeError as error:
            raise RuntimeFault(
                f"the backward pass of stage {self.stage_index} cannot be done in two parts: "
                f"{error}",
                where="stages.py",
                expected="operations whose backward may run twice, for other gradients each time",
                hint="--mode interleaved or 1f1b goes back in one",
            ) from error


def backward_inputs(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor | None] | None,
    inputs: Sequence[Tensor],
) -> tuple[Gradients, Deferred]:
    """The first part.

    Args:
        outputs: of a stage; those without a history do not count.
        gradients: for them; None where an output is a loss, or has none.
        inputs: leaves from which the outputs were computed.

    Returns:
        The gradient of each input, contiguous, None where it takes none; and what is left to do.
    """
    roots = _roots(outputs, gradients)
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    deferred = Deferred(_branches(roots, wanted))
    if not roots or not wanted:
        return (None,) * len(inputs), deferred
    with deferred.keeping():
        found = torch.autograd.grad(
            [edge for edge, _ in roots],
            wanted,
            [gradient for _, gradient in roots],
            retain_graph=True,
            allow_unused=True,
        )
    by_input = {id(tensor): gradient for tensor, gradient in zip(wanted, found, strict=True)}
    return _sendable(by_input.get(id(tensor)) for tensor in inputs), deferred


def backward_whole(
    outputs: Sequence[Tensor],
    gradients: Sequence[Tensor | None] | None,
    inputs: Sequence[Tensor],
) -> tuple[Gradients, Deferred]:
    """Both parts at once: takes and returns what `backward_inputs` does, and leaves nothing."""
    roots = _roots(outputs, gradients)
    torch.autograd.backward([edge for edge, _ in roots], [gradient for _, gradient in roots])
    found = _sendable(tensor.grad for tensor in inputs)
    for tensor in inputs:
        tensor.grad = None
    return found, Deferred(())


def _roots(outputs: Sequence[Tensor], gradients: Sequence[Tensor | None] | None) -> list[Root]:
    roots: list[Root] = []
    for place, output in enumerate(outputs):
        gradient = torch.ones_like(output) if gradients is None else gradients[place]
        if output.requires_grad and gradient is not None:
            roots.append((get_gradient_edge(output), gradient))
    return roots


def _sendable(gradients: Iterable[Tensor | None]) -> Gradients:
    return tuple(None if gradient is None else gradient.contiguous() for gradient in gradients)


def _branches(roots: Sequence[Root], inputs: Sequence[Tensor]) -> list[Branches]:
    """The parameters below some outputs, grouped by what their branches share."""
    order = _children_first(edge.node for edge, _ in roots)
    ends = {id(tensor) for tensor in inputs}
    through: set[Node] = set()  # on a way to an input
    for node in order:
        if id(getattr(node, "variable", None)) in ends or any(
            child in through for child, _ in node.next_functions
        ):
            through.add(node)
    group = _Groups()
    leaving = []
    for node in order:
        outside = [child for child, _ in node.next_functions if child and child not in through]
        if node in through and outside:
            leaving.append(node)
        for child in outside:
            group.join(node, child)
    found: dict[Node, Branches] = {}
    for node in order:
        variable = getattr(node, "variable", None)
        if variable is not None and node not in through:
            found.setdefault(group.of(node), Branches()).parameters.append(variable)
    for node in leaving:
        if group.of(node) in found:
            found[group.of(node)].nodes.append(node)
    for edge, gradient in roots:
        if edge.node not in through and group.of(edge.node) in found:
            found[group.of(edge.node)].roots.append((edge, gradient))
    return list(found.values())


def _children_first(roots: Iterable[Node]) -> list[Node]:
    """All nodes below some, each after those that it leads to."""
    order: list[Node] = []
    seen: set[Node] = set()
    stack: list[tuple[Node, bool]] = [(root, False) for root in roots]
    while stack:
        node, done = stack.pop()
        if done:
            order.append(node)
            continue
        if node in seen:
            continue
        seen.add(node)
        stack.append((node, True))
        stack += [(child, False) for child, _ in node.next_functions if child is not None]
    return order


class _Groups:
    """Nodes that belong together, told pair by pair."""

    def __init__(self) -> None:
        self._above: dict[Node, Node] = {}

    def of(self, node: Node) -> Node:
        """The node that stands for a node's group."""
        while (above := self._above.get(node)) is not None:
            if (next_above := self._above.get(above)) is not None:
                self._above[node] = next_above
            node = above
        return node

    def join(self, one: Node, other: Node) -> None:
        """Makes one group of two."""
        one, other = self.of(one), self.of(other)
        if one is not other:
            self._above[other] = one


@contextmanager
def _prehooks(nodes: Iterable[Node], hook: Any) -> Iterator[None]:
    """Calls `hook(node, gradients)` before each of the nodes runs."""
    handles = [
        node.register_prehook(lambda gradients, node=node: hook(node, gradients)) for node in nodes
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
