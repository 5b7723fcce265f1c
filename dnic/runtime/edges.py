"""The edges of one stage: what it gets from each stage below and gives to each stage above.

An edge joins two stages that share an interface, or that follow one another (targets always go
from each stage to the next). It has a link for activations and targets, and a second one for
gradients where a tensor is differentiable. Both ends are built from the plan alone, so they agree
on tags, slots and layouts without asking.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch import distributed as dist

from dnic.runtime.batches import Header
from dnic.runtime.links import Link, Receiver, Sender
from dnic.runtime.options import Mode
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
        slots: messages that may be under way, in each direction.
    """

    source: int
    to: int
    tensors: tuple[TensorSpec, ...]
    slots: int

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
        self._forward.begin(self._pair.specs(header), header.count)
        if gradients and self._backward is not None:
            self._backward.begin(self._pair.differentiable, header.count)

    def receive(self, *, gradients: bool) -> tuple[dict[str, Tensor], Tensor | None]:
        """The next batch: tensors by name, valid until released, and the targets if they come.

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
                # An input that did not matter for this batch has no gradient.
                gradients.append(torch.zeros_like(tensor) if tensor.grad is None else tensor.grad)
            self._backward.send(gradients)
        self.release()

    def release(self) -> None:
        """Frees the slot of the batch that was received last."""
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

    @property
    def sent_bytes(self) -> int:
        """Bytes sent back since the run began."""
        return self._backward.sent_bytes if self._backward is not None else 0

    @property
    def in_flight_bytes(self) -> int:
        """Memory of the messages that may be under way, both ways."""
        back = self._backward.slots_bytes if self._backward is not None else 0
        return self._forward.slots_bytes + back


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
        self._forward.begin(self._pair.specs(header), header.count)
        if gradients and self.source is not None:
            self.source.begin(header.count)

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

    @property
    def sent_bytes(self) -> int:
        """Bytes sent since the run began."""
        return self._forward.sent_bytes

    @property
    def in_flight_bytes(self) -> int:
        """Memory of the messages that may be under way, both ways."""
        back = self._backward.slots_bytes if self._backward is not None else 0
        return self._forward.slots_bytes + back


def connect(worker: Worker) -> tuple[list[InEdge], list[OutEdge]]:
    """The edges of a worker's stage, those below and those above."""
    plan, rank = worker.bundle.plan, worker.place.rank
    interfaces = {(interface.source, interface.to): interface for interface in plan.interfaces}
    below: list[InEdge] = []
    above: list[OutEdge] = []
    for number, pair in enumerate(pairs(plan, worker.options.mode)):
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
            sender = Sender(backward, pair.slots) if returns else None
            below.append(InEdge(pair, Receiver(forward, pair.slots), sender))
            continue
        receiver = Receiver(backward, pair.slots) if returns else None
        source = None
        if receiver is not None:
            interface = interfaces[pair.source, pair.to]
            source = build_source(
                interface, receiver, worker.options.mode, plan.target, worker.device, worker.seed
            )
        above.append(OutEdge(pair, Sender(forward, pair.slots), receiver, source))
    return below, above


def pairs(plan: Plan, mode: Mode) -> list[Pair]:
    """Every two stages between which tensors pass, in an order that all processes share."""
    interfaces = {(interface.source, interface.to): interface for interface in plan.interfaces}
    following = [(stage, stage + 1) for stage in range(len(plan.stages) - 1)]
    found = []
    for source, to in sorted({*interfaces, *following}):
        interface = interfaces.get((source, to))
        tensors = interface.tensors if interface is not None else ()
        if interface is not None and interface.differentiable:
            slots = lag(interface, mode) + 1
        else:
            # No gradient comes back to hold the sender; it must not be held more than elsewhere.
            steps = [interfaces.get(pair) for pair in following[source:to]]
            slots = sum(lag(step, mode) + 1 for step in steps) + 1
        found.append(Pair(source, to, tensors, max(slots, 2)))
    return found


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
