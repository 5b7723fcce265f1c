"""Parameters that several stages use: one parameter, of which the later stages hold copies.

The earliest stage owns it. What passes between the owner and one holder:

    owner, step t                                   holder, step t
    -------------                                   --------------
    value after update t-1   ───────────────────►   into its copy, before the forward pass
    ...                                             forward, backward
    gradient of batch t-W    ◄───────────────────   gradient of batch t; none is left for the
    own gradient t + theirs, in the order             holder's optimizer
    of the stages; update t

W is as many batches as the gradients that the owner waits for anyway are late, so nothing waits
longer than without sharing (a stage that goes back through late batches sends their gradients as
late; the owner's own may be as late): 0 in exact and oracle mode, which makes exact mode plain
backpropagation. While a run begins in time (`dnic.runtime.crossing`) it is less by as much as the
owner is late afterwards: what is fixed is the owner's updates before the first with a gradient of
the holder. A run does not depend on its links' timing. At the end of an epoch the last W gradients
make one further update, of the shared parameters alone, and the value goes out once more:
evaluation, checkpoints and the end of a run see the same parameter everywhere.

Replicas of stages share within their column. A holder's replicas have averaged the gradient before
it leaves, so that every replica of the owner adds the same.

`torch.distributed.pipelining` copies such parameters and lets them drift apart; its users add an
all-reduce of their own, which would make decoupled stages wait for one another. Not handled:
buffers (each stage keeps its own) and sparse gradients (they are sent dense).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.clipping import Clipping
from dnic.runtime.crossing import crossings
from dnic.runtime.edges import pairs
from dnic.runtime.groups import groups
from dnic.runtime.links import Count, Link, Receiver, Sender
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.options import Mode
from dnic.runtime.plan import Plan, SharedPlan, TensorSpec

if TYPE_CHECKING:
    from dnic.runtime.transport import Transport
    from dnic.runtime.worker import Worker


@dataclass(frozen=True)
class Channel:
    """An owner, one of its holders, and what they share.

    Attributes:
        owner, holder: the stages.
        shared: the parameters, in the order of the plan.
        lag: W, in batches.
        late: of these, batches by which the owner's own gradients are late; a run begins without.
    """

    owner: int
    holder: int
    shared: tuple[SharedPlan, ...]
    lag: int
    late: int = 0

    @property
    def updates(self) -> int:
        """Updates of the owner in an epoch before the first with gradients of the holder."""
        return self.lag - self.late

    def parameters(self, stage: nn.Module) -> list[nn.Parameter]:
        """The parameters as one of the two stages holds them; those that train.

        Raises:
            RuntimeFault: the stage lacks one.
        """
        found = [_held(stage, shared) for shared in self.shared]
        return [parameter for parameter in found if parameter.requires_grad]


class Lent:
    """What an owner has to do with one holder.

    Args:
        channel: the two.
        parameters: the owner's.
        values: where the values leave; as many slots as the channel's lag and one.
        gradients: where the holder's gradients arrive, likewise.
    """

    def __init__(
        self,
        channel: Channel,
        parameters: Sequence[nn.Parameter],
        values: Sender,
        gradients: Receiver,
    ) -> None:
        self._first = channel.updates
        self._parameters = parameters
        self._specs = _specs(parameters)
        # The owner has the gradient of batch t-W-1 when it sends value t: no slot is ever awaited.
        self._values = values
        self._gradients = gradients
        self._steps = self._updates = self._taken = 0

    def begin(self, steps: int) -> None:
        """Prepares an epoch."""
        self._steps, self._updates, self._taken = steps, 0, 0
        self._values.begin(self._specs, Count(steps + 1, 1, 1))
        self._gradients.begin(self._specs, Count(steps, 1, 1))

    def send(self) -> None:
        """Sends the values as they are."""
        self._values.send(self._parameters)

    def take(self) -> None:
        """Adds the holder's gradients of W batches ago to the owner's; before every update."""
        self._updates += 1
        if self._updates > self._first and self.behind:
            self._add()

    @property
    def behind(self) -> bool:
        """Whether gradients of this epoch are still to come."""
        return self._taken < self._steps

    def drain(self) -> None:
        """Adds what is still to come, batch by batch."""
        while self.behind:
            self._add()

    def finish(self) -> None:
        """Waits until everything has left."""
        self._values.finish()

    def _add(self) -> None:
        for parameter, gradient in zip(self._parameters, self._gradients.receive(), strict=True):
            add_gradient(parameter, gradient)
        self._gradients.release()
        self._taken += 1


class Borrowed:
    """What a holder has to do with an owner.

    Args:
        parameters: the holder's copies.
        values: where the values arrive.
        gradients: where gradients leave.
    """

    def __init__(
        self, parameters: Sequence[nn.Parameter], values: Receiver, gradients: Sender
    ) -> None:
        self._parameters = parameters
        self._specs = _specs(parameters)
        self._values = values
        self._gradients = gradients

    def begin(self, steps: int) -> None:
        """Posts the first receives of an epoch."""
        self._values.begin(self._specs, Count(steps + 1, 1, 1))
        self._gradients.begin(self._specs, Count(steps, 1, 1))

    def receive(self) -> None:
        """Waits for the owner's next values and takes them over."""
        with torch.no_grad():
            for parameter, value in zip(self._parameters, self._values.receive(), strict=True):
                parameter.copy_(value)
        self._values.release()

    def send(self) -> None:
        """Sends the gradients, and leaves none for an optimizer of this stage."""
        self._gradients.send([take_gradient(parameter) for parameter in self._parameters])

    def finish(self) -> None:
        """Waits until everything has left."""
        self._gradients.finish()


class SharedParameters:
    """Everything that one stage shares; the engine calls it at the same places in every step.

    Args:
        lent: by holder.
        borrowed: by owner.
    """

    def __init__(self, lent: Sequence[Lent], borrowed: Sequence[Borrowed]) -> None:
        self._lent = lent
        self._borrowed = borrowed
        self._ends: list[Lent | Borrowed] = [*lent, *borrowed]

    def begin(self, steps: int) -> None:
        """Prepares an epoch of so many steps."""
        for end in self._ends:
            end.begin(steps)

    def exchange_values(self) -> None:
        """Before the forward pass: the owner's values go out, those of others are taken over."""
        for lent in self._lent:
            lent.send()
        for borrowed in self._borrowed:
            borrowed.receive()

    def send_gradients(self) -> None:
        """After the backward pass."""
        for borrowed in self._borrowed:
            borrowed.send()

    def take_gradients(self) -> None:
        """Before the update."""
        for lent in self._lent:
            lent.take()

    def drain(self, optimizer: torch.optim.Optimizer, clipping: Clipping) -> None:
        """At the end of an epoch: the update with the last gradients, and the final values."""
        if any(lent.behind for lent in self._lent):
            clear_gradients(optimizer)
            for lent in self._lent:
                lent.drain()
            clipping.clip()
            optimizer.step()
        self.exchange_values()

    def finish(self) -> None:
        """Waits until everything has left."""
        for end in self._ends:
            end.finish()


def connect_shared(worker: Worker, stage: nn.Module, transport: Transport) -> SharedParameters:
    """A worker's ends of all channels that its stage takes part in."""
    plan, mode, place = worker.bundle.plan, worker.options.mode, worker.place
    stage_number = place.stage
    first_tag = 2 * len(pairs(plan, mode))
    lent: list[Lent] = []
    borrowed: list[Borrowed] = []
    for number, channel in enumerate(channels(plan, mode)):
        # Every process must take part in making every group.
        timeout_s = worker.options.timeout_s
        made = groups(channel.owner, channel.holder, worker.device, timeout_s, place)
        if stage_number not in (channel.owner, channel.holder):
            continue
        parameters = channel.parameters(stage)
        owns = stage_number == channel.owner
        peer = place.rank_of(channel.holder if owns else channel.owner)
        tag = first_tag + 2 * number
        values, gradients = (
            Link(
                peer,
                place.tag_of(tag + direction),
                made[direction],
                worker.device,
                place.replicas,
            )
            for direction in (0, 1)
        )
        if not parameters:
            continue
        slots = channel.lag + 1
        if owns:
            sender = transport.sender(values, slots, slots)
            lent.append(Lent(channel, parameters, sender, transport.receiver(gradients, slots)))
        else:
            receiver = transport.receiver(values, slots)
            leaving = transport.sender(gradients, slots, slots)
            borrowed.append(Borrowed(parameters, receiver, leaving))
    return SharedParameters(lent, borrowed)


def channels(plan: Plan, mode: Mode) -> list[Channel]:
    """Every owner with every holder of it, in an order that all processes share."""
    late = crossings(plan, mode).late
    between: dict[tuple[int, int], list[SharedPlan]] = {}
    for shared in plan.shared:
        for holder in shared.holders:
            between.setdefault((shared.owner, holder), []).append(shared)
    return [
        Channel(
            owner,
            holder,
            tuple(between[owner, holder]),
            shared_lag(plan, mode, owner, holder),
            late[owner],
        )
        for owner, holder in sorted(between)
    ]


def shared_lag(plan: Plan, mode: Mode, owner: int, holder: int) -> int:
    """W: batches by which a holder's gradient is late.

    The shortest way from the owner to the holder, each interface counting what may be past it: what
    the owner awaits of the stages between implies that the holder is that far. The holder's own
    lateness comes on top; the owner adds nothing to batches before it goes back through them.
    """
    crossed = crossings(plan, mode)
    real = [interface for interface in crossed.interfaces if interface.differentiable]
    if mode == "oracle" or all(interface.gradient == "exact" for interface in real):
        return 0
    pairs_ = {(stage, stage + 1) for stage in range(len(plan.stages) - 1)}
    pairs_ |= {(interface.source, interface.to) for interface in real}
    behind = {owner: 0}
    for stage in range(owner + 1, holder + 1):
        behind[stage] = min(
            behind[a] + crossed.hold(a, b) for a, b in pairs_ if b == stage and a in behind
        )
    return max(behind[holder] + crossed.late[holder], crossed.late[owner])


def borrowed_parameters(stage: nn.Module, plan: Plan, index: int) -> list[nn.Parameter]:
    """The parameters of a stage that another stage owns."""
    return [_held(stage, shared) for shared in plan.shared if index in shared.holders]


def add_gradient(parameter: nn.Parameter, gradient: Tensor) -> None:
    """Adds to a parameter's gradient, which may share its memory with another tensor's."""
    own = parameter.grad
    parameter.grad = gradient.clone() if own is None else own.to_dense() + gradient


def take_gradient(parameter: nn.Parameter) -> Tensor:
    """A parameter's gradient, which it no longer has; zeros where it had none."""
    gradient, parameter.grad = parameter.grad, None
    return torch.zeros_like(parameter) if gradient is None else gradient.to_dense()


def _held(stage: nn.Module, shared: SharedPlan) -> nn.Parameter:
    parameters = dict(stage.named_parameters(remove_duplicate=False))
    for name in shared.names:
        if name in parameters:
            return parameters[name]
    raise RuntimeFault(
        f"the shared parameter {shared.name} is not in a stage that should hold it",
        where="plan.yaml: shared",
        hint="dnic compile --plan plan.yaml writes the generated files anew",
    )


def _specs(parameters: Sequence[nn.Parameter]) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            f"shared{number}",
            tuple(parameter.shape),
            str(parameter.dtype).removeprefix("torch."),
            True,
        )
        for number, parameter in enumerate(parameters)
    )
