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
from dnic.runtime.crossing import Crossings, Returns, crossings
from dnic.runtime.links import Link, Receiver, Sender
from dnic.runtime.options import Mode
from dnic.runtime.plan import InterfacePlan, Plan, TensorSpec
from dnic.runtime.sources import GradientSource, build_source

if TYPE_CHECKING:
    from dnic.runtime.transport import Transport
    from dnic.runtime.worker import Worker


@dataclass(frozen=True)
class Pair:
    """Two stages between which tensors pass.

    Attributes:
        source, to: the stages.
        interface: theirs; None where the two only follow one another.
        slots: messages that may be under way, in each direction.
        kept: messages more that the receiving stage keeps, because it is late.
    """

    source: int
    to: int
    interface: InterfacePlan | None
    slots: int
    kept: int = 0

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """The tensors of the interface."""
        return self.interface.tensors if self.interface is not None else ()

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
        self._returns = Returns()
        self._step = 0  # of the batch whose gradients are sent back next

    def begin(self, header: Header, step: int, total_steps: int, *, gradients: bool) -> None:
        """Prepares the links for an epoch, or for an evaluation without gradients.

        Args:
            header: what comes.
            step: of its first batch.
            total_steps: of the run.
            gradients: whether they are sent back.
        """
        self._forward.begin(self._pair.specs(header), header.count)
        if not gradients or self._backward is None or self._pair.interface is None:
            return
        self._step, self._returns = step, Returns.of(self._pair.interface, total_steps)
        self._backward.begin(self._pair.differentiable, self._returns.count(step, header.count))

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
        """Sends the gradients that the backward pass left in the inputs, and frees their slot.

        Nothing is sent for a batch whose gradients do not return.
        """
        step, self._step = self._step, self._step + 1
        if self._backward is not None and step in self._returns:
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


class OutEdge:
    """What a stage gives to one stage above.

    Args:
        pair: the two stages.
        forward: where activations leave.
        source: of the gradients; None without differentiable tensors.
    """

    def __init__(self, pair: Pair, forward: Sender, source: GradientSource | None) -> None:
        self.source = source
        self._pair = pair
        self._forward = forward

    def begin(self, header: Header, step: int, *, gradients: bool) -> None:
        """Prepares the links for an epoch, or for an evaluation without gradients.

        Args:
            header: what comes.
            step: of its first batch.
            gradients: whether they come back.
        """
        self._forward.begin(self._pair.specs(header), header.count)
        if gradients and self.source is not None:
            self.source.begin(header.count, step)

    def send(self, outputs: Mapping[str, Tensor], target: Tensor) -> None:
        """Sends this edge's share of the outputs, and the targets if they go this way."""
        tensors = [outputs[spec.name] for spec in self._pair.tensors]
        self._forward.send([*tensors, target] if self._pair.carries_target else tensors)

    def finish(self) -> None:
        """Waits until everything has left."""
        self._forward.finish()


def connect(worker: Worker, transport: Transport) -> tuple[list[InEdge], list[OutEdge]]:
    """The edges of a worker's stage, those below and those above."""
    plan, rank, mode = worker.bundle.plan, worker.place.rank, worker.options.mode
    late = crossings(plan, mode).late
    below: list[InEdge] = []
    above: list[OutEdge] = []
    for number, pair in enumerate(pairs(plan, mode)):
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
        kept = pair.slots + pair.kept
        if rank == pair.to:
            arriving = transport.receiver(forward, kept)
            leaving = transport.sender(backward, pair.slots, pair.slots) if returns else None
            below.append(InEdge(pair, arriving, leaving))
            continue
        sender = transport.sender(forward, pair.slots, kept)
        source = None
        if returns and pair.interface is not None:
            receiver = transport.receiver(backward, pair.slots)
            given = receiver, mode, plan.target, worker.device, worker.seed, late[pair.to]
            source = build_source(pair.interface, *given)
        above.append(OutEdge(pair, sender, source))
    return below, above


def pairs(plan: Plan, mode: Mode) -> list[Pair]:
    """Every two stages between which tensors pass, in an order that all processes share."""
    crossed: Crossings = crossings(plan, mode)
    following = [(stage, stage + 1) for stage in range(len(plan.stages) - 1)]
    found = []
    for source, to in sorted({(row.source, row.to) for row in crossed.interfaces} | {*following}):
        interface = crossed.between(source, to)
        if interface is not None and interface.differentiable:
            slots = crossed.hold(source, to) + 1
        else:
            # No gradient comes back to hold the sender; it must not be held more than elsewhere.
            slots = sum(crossed.hold(*pair) + 1 for pair in following[source:to]) + 1
        found.append(Pair(source, to, interface, max(slots, 2), crossed.late[to]))
    return found


def groups(
    source: int, to: int, device: torch.device
) -> tuple[dist.ProcessGroup | None, dist.ProcessGroup | None]:
    """The process groups of the two directions between two stages; all processes must ask."""
    if device.type != "cuda":
        return None, None  # gloo tells the links apart by tag
    there, back = (dist.new_group([source, to], backend="nccl") for _ in range(2))
    return there, back
