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

from dnic.runtime.batches import Header
from dnic.runtime.crossing import Crossings, Returns, crossings
from dnic.runtime.groups import groups as groups
from dnic.runtime.links import Count, Link, Receiver, Sender
from dnic.runtime.loss import Loss
from dnic.runtime.options import Mode
from dnic.runtime.order import most_ahead
from dnic.runtime.plan import InterfacePlan, Plan, TensorSpec
from dnic.runtime.predicted_sources import build_source
from dnic.runtime.setting import Setting
from dnic.runtime.sources import GradientSource

if TYPE_CHECKING:
    from dnic.runtime.transport import Transport
    from dnic.runtime.worker import Worker


@dataclass(frozen=True)
class Pair:
    """Two stages between which tensors pass.

    Attributes:
        source, to: the stages.
        interface: theirs; None where the two only follow one another.
        slots: messages forward that may be under way, each of a microbatch.
        back: gradients, likewise.
        kept: messages more that the receiving stage keeps, because it is late.
        microbatches: into which a batch is cut, at most.
    """

    source: int
    to: int
    interface: InterfacePlan | None
    slots: int
    back: int
    kept: int = 0
    microbatches: int = 1

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

    def cut(self, batches: Count) -> Count:
        """The messages of so many batches."""
        return batches.cut(self.microbatches)


class InEdge:
    """What a stage gets from one stage below.

    Args:
        pair: the two stages.
        forward: where activations arrive.
        backward: where gradients leave; None without differentiable tensors.
        seed: of the run.
    """

    def __init__(
        self, pair: Pair, forward: Receiver, backward: Sender | None, seed: int = 0
    ) -> None:
        self._pair = pair
        self._seed = seed
        self._forward = forward
        self._backward = backward
        self._returns = Returns()

    def begin(self, header: Header, step: int, total_steps: int, *, gradients: bool) -> None:
        """Prepares the links for an epoch, or for an evaluation without gradients.

        Args:
            header: what comes.
            step: of its first batch.
            total_steps: of the run.
            gradients: whether they are sent back.
        """
        self._forward.begin(self._pair.specs(header), self._pair.cut(header.count))
        if not gradients or self._backward is None or self._pair.interface is None:
            return
        self._returns = Returns.of(self._pair.interface, total_steps, self._seed)
        returned = self._returns.count(step, header.count)
        self._backward.begin(self._pair.differentiable, self._pair.cut(returned))

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

    def send_back(self, inputs: Mapping[str, Tensor], step: int) -> None:
        """Sends the gradients that the backward pass left in the inputs, and frees their slot.

        Nothing is sent for a batch whose gradients do not return.
        """
        if self._backward is not None and step in self._returns:
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
        self._forward.begin(self._pair.specs(header), self._pair.cut(header.count))
        if gradients and self.source is not None:
            self.source.begin(header.count, step, self._pair.microbatches)

    def send(self, outputs: Mapping[str, Tensor], target: Tensor) -> None:
        """Sends this edge's share of the outputs, and the targets if they go this way."""
        tensors = [outputs[spec.name] for spec in self._pair.tensors]
        self._forward.send([*tensors, target] if self._pair.carries_target else tensors)

    def finish(self) -> None:
        """Waits until everything has left."""
        self._forward.finish()


def connect(worker: Worker, transport: Transport, loss: Loss) -> tuple[list[InEdge], list[OutEdge]]:
    """The edges of a worker's stage, those below and those above."""
    plan, place, mode = worker.bundle.plan, worker.place, worker.options.mode
    stage = place.stage
    late = crossings(plan, mode).late
    below: list[InEdge] = []
    above: list[OutEdge] = []
    microbatches = worker.options.microbatches
    for number, pair in enumerate(pairs(plan, mode, microbatches)):
        # Every process must take part in making every group.
        made = groups(pair.source, pair.to, worker.device, worker.options.timeout_s, place)
        if stage not in (pair.source, pair.to):
            continue
        peer = place.rank_of(pair.to if stage == pair.source else pair.source)
        forward, backward = (
            Link(
                peer,
                place.tag_of(2 * number + direction),
                made[direction],
                worker.device,
                place.replicas,
            )
            for direction in (0, 1)
        )
        returns = bool(pair.differentiable)
        kept = pair.slots + pair.kept
        if stage == pair.to:
            arriving = transport.receiver(forward, kept)
            leaving = transport.sender(backward, pair.back, pair.back) if returns else None
            below.append(InEdge(pair, arriving, leaving, worker.seed))
            continue
        sender = transport.sender(forward, pair.slots, kept)
        source = None
        if returns and pair.interface is not None:
            receiver = transport.receiver(backward, pair.back)
            given = plan.target, plan.output, loss, worker.device, worker.seed, worker.replicas
            source = build_source(pair.interface, receiver, mode, Setting(*given), late[pair.to])
        above.append(OutEdge(pair, sender, source))
    return below, above


def pairs(plan: Plan, mode: Mode, microbatches: int = 1) -> list[Pair]:
    """Every two stages between which tensors pass, in an order that all processes share."""
    crossed: Crossings = crossings(plan, mode)
    ahead = most_ahead(plan, mode)
    following = [(stage, stage + 1) for stage in range(len(plan.stages) - 1)]
    found = []
    for source, to in sorted({(row.source, row.to) for row in crossed.interfaces} | {*following}):
        interface = crossed.between(source, to)
        returns = interface is not None and bool(interface.differentiable)
        # Where no gradient comes back to hold the sender, it must not be held more than elsewhere.
        steps = [(source, to)] if returns else following[source:to]
        slots = sum(past(crossed.hold(*step), microbatches, ahead[step[0]]) for step in steps)
        # A slot is free again after the backward pass, for which the stage above runs ahead.
        slots = max(slots + (not returns), min(ahead[to] + 1, microbatches), 2)
        back = max((crossed.hold(source, to) + 1) * microbatches, 2)
        found.append(Pair(source, to, interface, slots, back, crossed.late[to], microbatches))
    return found


def past(batches: int, microbatches: int, ahead: int) -> int:
    """Messages that may be past an interface, with the one at hand.

    Args:
        batches: that may be past it, beside the one at hand.
        microbatches: in a batch, at most.
        ahead: forwards that the interface's source runs ahead.
    """
    return (batches + 1) * microbatches if batches else min(ahead + 1, microbatches)
