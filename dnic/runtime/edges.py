"""The edges of one stage: what it gets from each stage below and gives to each stage above.

An edge joins two stages that share an interface, or that follow one another (targets always go
from each stage to the next). It has a link for activations and targets, and a second one for
gradients where a tensor is differentiable. Both ends are built from the plan alone, so they agree
on tags, slots and layouts without asking.

In training a message is a microbatch, in an evaluation a batch. There are as many slots as messages
are past the edge when nobody waits for a slot: where the gradient is awaited, those that the
source runs ahead of its backward passes; else those of `window + 1` batches. Gradients keep theirs
until the step's update.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

from dnic.runtime.batches import Header
from dnic.runtime.links import Count, Link, Receiver, Sender
from dnic.runtime.options import Mode
from dnic.runtime.order import most_ahead
from dnic.runtime.plan import InterfacePlan, Plan, TensorSpec
from dnic.runtime.sources import GradientSource, build_source

if TYPE_CHECKING:
    from dnic.runtime.worker import Worker


@dataclass(frozen=True)
class Pair:
    """Two stages between which tensors pass.

    Attributes:
        source, to: the stages.
        tensors: the tensors of their interface; none where the two only follow one another.
        slots: activations that may be under way in training, each of a microbatch.
        back: gradients, likewise.
        whole: activations in an evaluation, each of a batch.
        microbatches: into which a batch is cut in training, at most.
    """

    source: int
    to: int
    tensors: tuple[TensorSpec, ...]
    slots: int
    back: int
    whole: int
    microbatches: int

    @property
    def differentiable(self) -> tuple[TensorSpec, ...]:
        """The tensors through which a gradient flows back."""
        return tuple(tensor for tensor in self.tensors if tensor.differentiable)

    @property
    def carries_target(self) -> bool:
        """Whether the targets go this way."""
        return self.to == self.source + 1

    def specs(self, header: Header) -> tuple[TensorSpec, ...]:
        """The tensors of a message forward; the targets last."""
        return (*self.tensors, header.target) if self.carries_target else self.tensors

    def phase(self, header: Header, *, gradients: bool) -> tuple[Count, int]:
        """The messages of a phase, and their slots."""
        if gradients:
            return header.count.cut(self.microbatches), self.slots
        return header.count, self.whole


class InEdge:
    """What a stage gets from one stage below.

    Args:
        pair: the two stages.
        forward: where activations arrive.
        backward: where gradients leave; None without differentiable tensors.
    """

    def __init__(self, pair: Pair, forward: Receiver, backward: Sender | None) -> None:
        self._pair = pair
        self._forward = forward
        self._backward = backward

    def begin(self, header: Header, *, gradients: bool) -> None:
        """Prepares the links for an epoch, or for an evaluation without gradients."""
        count, slots = self._pair.phase(header, gradients=gradients)
        self._forward.begin(self._pair.specs(header), count, slots)
        if gradients and self._backward is not None:
            self._backward.begin(self._pair.differentiable, count)

    def receive(self, *, gradients: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """The next message: tensors by name, valid until released, and the targets if they come.

        With `gradients` the differentiable ones are leaves that collect their gradient.
        """
        arrived = self._forward.receive()
        tensors = {
            spec.name: tensor.detach().requires_grad_(gradients and spec.differentiable)
            for spec, tensor in zip(self._pair.tensors, arrived, strict=False)
        }
        return tensors, arrived[-1] if self._pair.carries_target else None

    def send_back(self, inputs: Mapping[str, Tensor]) -> None:
        """Sends the gradients that the backward pass left in the inputs, and frees their slot."""
        if self._backward is not None:
            gradients = []
            for spec in self._pair.differentiable:
                tensor = inputs[spec.name]
                # An input that did not matter has no gradient.
                gradients.append(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
            self._backward.send(gradients)
        self.release()

    def release(self) -> None:
        """Frees the slot of the oldest message that was received."""
        self._forward.release()

    def owns(self, tensor: Tensor) -> bool:
        """Whether a tensor lies in a slot, which the next messages overwrite."""
        return self._forward.owns(tensor)

    def finish(self) -> None:
        """Waits until everything has left."""
        if self._backward is not None:
            self._backward.finish()

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for this edge since the run began."""
        sent = self._backward.waited_s if self._backward is not None else 0.0
        return self._forward.waited_s + sent


class OutEdge:
    """What a stage gives to one stage above.

    Args:
        pair: the two stages.
        forward: where activations leave.
        backward: where gradients arrive; None without differentiable tensors.
        source: of the gradients; None without differentiable tensors.
    """

    def __init__(
        self,
        pair: Pair,
        forward: Sender,
        backward: Receiver | None,
        source: GradientSource | None,
    ) -> None:
        self.source = source
        self._pair = pair
        self._forward = forward
        self._backward = backward

    def begin(self, header: Header, *, gradients: bool) -> None:
        """Prepares the links for an epoch, or for an evaluation without gradients."""
        count, slots = self._pair.phase(header, gradients=gradients)
        self._forward.begin(self._pair.specs(header), count, slots)
        if gradients and self.source is not None:
            self.source.begin(count)

    def send(self, outputs: Mapping[str, Tensor], target: Tensor) -> None:
        """Sends this edge's share of the outputs, and the targets if they go this way."""
        tensors = [outputs[spec.name] for spec in self._pair.tensors]
        self._forward.send([*tensors, target] if self._pair.carries_target else tensors)

    def finish(self) -> None:
        """Waits until everything has left."""
        self._forward.finish()

    @property
    def waited_s(self) -> float:
        """Seconds spent waiting for this edge since the run began."""
        received = self._backward.waited_s if self._backward is not None else 0.0
        return self._forward.waited_s + received


def connect(worker: Worker) -> tuple[list[InEdge], list[OutEdge]]:
    """The edges of a worker's stage, those below and those above."""
    plan, rank = worker.bundle.plan, worker.place.rank
    interfaces = {(interface.source, interface.to): interface for interface in plan.interfaces}
    below: list[InEdge] = []
    above: list[OutEdge] = []
    microbatches = worker.options.microbatches
    for number, pair in enumerate(pairs(plan, worker.options.mode, microbatches)):
        # Every process must take part in making every group.
        made = groups(pair.source, pair.to, worker.device)
        if rank not in (pair.source, pair.to):
            continue
        peer = pair.to if rank == pair.source else pair.source
        forward, backward = (
            Link(peer, 2 * number + direction, made[direction], worker.device)
            for direction in (0, 1)
        )
        returns = bool(pair.differentiable)
        if rank == pair.to:
            sender = Sender(backward, pair.back) if returns else None
            below.append(InEdge(pair, Receiver(forward, pair.slots), sender))
            continue
        receiver = Receiver(backward, pair.back) if returns else None
        source = None
        if receiver is not None:
            interface = interfaces[pair.source, pair.to]
            source = build_source(
                interface, receiver, worker.options.mode, plan.target, worker.device, worker.seed
            )
        above.append(OutEdge(pair, Sender(forward, pair.slots), receiver, source))
    return below, above


def pairs(plan: Plan, mode: Mode, microbatches: int = 1) -> list[Pair]:
    """Every two stages between which tensors pass, in an order that all processes share."""
    ahead = most_ahead(plan, mode)
    interfaces = {(interface.source, interface.to): interface for interface in plan.interfaces}
    following = [(stage, stage + 1) for stage in range(len(plan.stages) - 1)]
    found = []
    for source, to in sorted({*interfaces, *following}):
        interface = interfaces.get((source, to))
        tensors = interface.tensors if interface is not None else ()
        returns = interface is not None and interface.differentiable
        # Where no gradient comes back to hold the sender, it must not be held more than elsewhere.
        steps = [(source, to)] if returns else following[source:to]
        slots, whole = (
            sum(past(interfaces.get(step), mode, number, ahead[step[0]]) for step in steps)
            + (0 if returns else 1)
            for number in (microbatches, 1)
        )
        # A slot is free again after the backward pass, for which the stage above runs ahead.
        slots = max(slots, min(ahead[to] + 1, microbatches))
        back = (lag(interface, mode) + 1) * microbatches
        found.append(
            Pair(source, to, tensors, max(slots, 2), max(back, 2), max(whole, 2), microbatches)
        )
    return found


def past(interface: InterfacePlan | None, mode: Mode, microbatches: int, ahead: int) -> int:
    """Messages that may be past an interface, with the one at hand.

    Args:
        interface: None between stages that only follow one another.
        mode: of the run.
        microbatches: in a batch, at most.
        ahead: forwards that the interface's source runs ahead.
    """
    batches = lag(interface, mode)
    return (batches + 1) * microbatches if batches else min(ahead + 1, microbatches)


def lag(interface: InterfacePlan | None, mode: Mode) -> int:
    """Batches that may be past an interface, beside the one at hand."""
    if interface is None:
        return 2
    return 0 if mode == "exact" or interface.gradient == "exact" else interface.window


def groups(
    source: int, to: int, device: torch.device
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """The process groups of the two directions between two stages; all processes must ask."""
    if device.type != "cuda":
        return None, None  # gloo tells the links apart by tag
    there, back = (dist.new_group([source, to], backend="nccl") for _ in range(2))
    return there, back
