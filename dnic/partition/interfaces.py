"""The interfaces of a plan: what crosses, where its gradient comes from, the head and the window.

A tensor goes straight from the stage that makes it to every later stage that uses it, so that there
is an interface for each such pair of stages, neighbours or not. Everything is decided here from the
costs of the stages that were chosen: heads are as wide as the stage's slack allows, windows as
small as the link allows. Which kind of head learns best is not known at compile time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dnic.cost import (
    DeviceProfile,
    HeadCost,
    message_us,
    needs_target,
    returned_share,
    stage_slack_us,
    transfer_us,
)
from dnic.errors import PartitionError
from dnic.graph.graph import Value
from dnic.partition.alternating import LATE, alternated, begins_with, in_turns, window_of
from dnic.partition.choose import Placement
from dnic.partition.context import Sight
from dnic.partition.defaults import learns_every, return_every, source_of
from dnic.partition.heads import deepened, plan_head
from dnic.partition.messages import Message, plan_message
from dnic.partition.misfits import replicas_misfit, source_misfit
from dnic.partition.penalties import settled, with_penalty
from dnic.partition.plan import (
    PlannedHead,
    PlannedInterface,
    PlannedTarget,
    PlannedTensor,
)
from dnic.partition.prediction import Flow, limits_us
from dnic.partition.reasons import why_exact, why_late, why_predicted
from dnic.partition.request import AWAITED, InterfaceChoice, PartitionRequest

HeadPlan = tuple[PlannedHead | None, HeadCost, str]


@dataclass(frozen=True)
class Crossing:
    """Tensors that one stage sends to another, in execution order.

    Attributes:
        name: `layers.2` between neighbours, `cos->stage2` where stages are skipped.
        source, to: indices of the stages.
        after: name of the cut behind the source.
        values: what crosses.
    """

    name: str
    source: int
    to: int
    after: str
    values: tuple[Value, ...]

    @property
    def differentiable(self) -> tuple[Value, ...]:
        """The tensors through which a gradient flows back."""
        return tuple(value for value in self.values if value.differentiable)

    @property
    def nbytes(self) -> int:
        """Bytes of one batch, as they are."""
        return sum(value.nbytes for value in self.values)

    @property
    def gradient_nbytes(self) -> int:
        """Bytes of one batch's gradients, as they are."""
        return sum(value.nbytes for value in self.differentiable)


@dataclass(frozen=True)
class Decided:
    """The interfaces, what they add to the stages, and their traffic."""

    interfaces: tuple[PlannedInterface, ...]
    flows: tuple[Flow, ...]
    stage_us: tuple[float, ...]
    heads: tuple[HeadCost, ...]


def decide_interfaces(
    crossings: Sequence[Crossing],
    choices: Sequence[InterfaceChoice],
    request: PartitionRequest,
    stage_us: Sequence[float],
    profile: DeviceProfile,
    batch_size: int,
    target: PlannedTarget | None,
    placement: Placement,
    sight: Sight,
) -> Decided:
    """Gradient source, head, window and predicted times of every interface.

    Args:
        crossings: what crosses between the stages.
        choices: what is asked for each of them.
        request: for the links.
        stage_us: time of each stage's operations in one step.
        profile: the device.
        batch_size: samples in a batch.
        target: what training targets look like; None without training data.
        placement: where the gradient at each cut comes from, and what each stage is on.
        sight: the tensors that heads can see.

    Raises:
        SpecError: a head is to see a tensor that does not exist.
        PartitionError: a predicted gradient is asked for where no head can be built.
    """
    asked = choices
    choices = [
        settled(choice, placement.cuts[c.source], c.differentiable, request, target)
        for c, choice in zip(crossings, asked, strict=True)
    ]
    gradients = [
        _gradient(c, choice, placement, target)
        for c, choice in zip(crossings, choices, strict=True)
    ]
    given = request, profile, placement
    open_flows = _open_flows(crossings, choices, gradients, *given)
    predicted = gradients
    gradients = alternated(
        crossings, choices, predicted, open_flows, request, stage_us, placement, target
    )
    if gradients != predicted:
        open_flows = _open_flows(crossings, choices, gradients, *given)
    choices = deepened(crossings, choices, gradients, target)
    begins = [
        begins_with(crossing, choice, gradient, flow, stage_us, open_flows, target)
        for crossing, choice, gradient, flow in zip(
            crossings, choices, gradients, open_flows, strict=True
        )
    ]
    messages = _messages(crossings, choices, gradients, open_flows, stage_us, profile)
    flows = [
        replace(flow, nbytes=message.nbytes, gradient_nbytes=message.gradient_nbytes)
        for flow, message in zip(open_flows, messages, strict=True)
    ]
    busy_us = _with_messages(stage_us, flows, profile)
    predictors = [
        begin if gradient == LATE else gradient
        for gradient, begin in zip(gradients, begins, strict=True)
    ]
    seen = [sight.of(*row) for row in zip(crossings, choices, predictors, strict=True)]

    def plan_heads(slack_us: Sequence[float]) -> tuple[list[HeadPlan], list[float]]:
        """Every head for its source's slack, and the stages' times with them."""
        heads: list[HeadPlan] = []
        total_us = busy_us.copy()
        for crossing, choice, gradient, source, beside in zip(
            crossings, choices, gradients, predictors, seen, strict=True
        ):
            reason = ""
            if gradient == "exact":
                reason = why_exact(crossing, choice, request, placement, target)
            elif gradient == LATE:
                reason = why_late(choice, source)
            if source in AWAITED:
                heads.append((None, HeadCost(), reason))
                continue
            head, cost, remark = plan_head(
                crossing.differentiable,
                source,
                choice,
                slack_us[crossing.source],
                profile,
                batch_size,
                target,
                timed=request.timed_heads,
                beside=beside,
            )
            cost = cost if source == gradient else cost.at_first()
            heads.append((head, cost, reason + remark))
            total_us[crossing.source] += cost.step_us(learns_every(source, choice))
        return heads, total_us

    narrow, narrow_us = plan_heads([0.0] * len(busy_us))
    sources = [c.source for c, head in zip(crossings, narrow, strict=True) if head[0] is not None]
    heads, total_us = plan_heads(
        [
            stage_slack_us(us, max(narrow_us)) / max(sources.count(stage), 1)
            for stage, us in enumerate(narrow_us)
        ]
    )
    sized = _sized(flows, choices, gradients, total_us)
    interfaces = tuple(
        _interface(
            crossings[i],
            choices[i],
            (gradients[i], begins[i]),
            sized[i],
            messages[i],
            heads[i],
            seen[i],
            total_us,
        )
        for i in range(len(crossings))
    )
    interfaces = tuple(
        with_penalty(*row, request, placement)
        for row in zip(interfaces, asked, choices, strict=True)
    )
    costs = tuple(cost for _, cost, _ in heads)
    return Decided(interfaces, sized, tuple(total_us), costs)


def _gradient(
    crossing: Crossing,
    choice: InterfaceChoice,
    placement: Placement,
    target: PlannedTarget | None,
) -> str:
    """Where the gradient comes from.

    Across several cuts it is not waited for as soon as one of these is decoupled: waiting for the
    gradient of an edge that skips stages would lock them all.

    Raises:
        PartitionError: it was asked for where no head can be built, or none can learn.
    """
    source = source_of(choice, crossing.differentiable, target)
    alone = replicas_misfit(source, placement.replicas[crossing.source])
    if alone and crossing.differentiable and choice.gradient == source:
        raise PartitionError(
            alone,
            where=f"interfaces.{crossing.name}.gradient",
            expected="synthetic, virtual, local, none, or a source that says replicated = True and "
            "averages what it learns from",
            hint="partition.replicas: 1, or another gradient",
        )
    misfit = source_misfit(source, crossing.differentiable, choice, target)
    if misfit and choice.gradient == source:
        expected = "real tensors with the batch on one axis"
        raise PartitionError(
            misfit,
            where=f"interfaces.{crossing.name}.gradient",
            expected=f"{expected}, and targets" if needs_target(source) else expected,
            hint="gradient: exact, or a cut elsewhere",
        )
    if not crossing.differentiable or choice.gradient == "exact":
        return "exact"
    cut = placement.sources[crossing.source : crossing.to]
    if choice.gradient == "auto" and "synthetic" not in cut:
        return "exact"
    if choice.stale:
        return "stale"
    return "exact" if misfit or alone else source


def _open_flows(
    crossings: Sequence[Crossing],
    choices: Sequence[InterfaceChoice],
    gradients: Sequence[str],
    request: PartitionRequest,
    profile: DeviceProfile,
    placement: Placement,
) -> list[Flow]:
    """The traffic of each interface, tensors as they are, windows still to be chosen."""
    return [
        Flow(
            name=crossing.name,
            source=crossing.source,
            to=crossing.to,
            nbytes=crossing.nbytes,
            gradient_nbytes=crossing.gradient_nbytes,
            link=request.link(
                placement.groups[crossing.source], placement.groups[crossing.to], profile.link
            ),
            locked=bool(crossing.differentiable) and gradient == "exact",
            return_every=return_every(gradient, choice),
        )
        for crossing, choice, gradient in zip(crossings, choices, gradients, strict=True)
    ]


def _messages(
    crossings: Sequence[Crossing],
    choices: Sequence[InterfaceChoice],
    gradients: Sequence[str],
    flows: Sequence[Flow],
    stage_us: Sequence[float],
    profile: DeviceProfile,
) -> list[Message]:
    """What travels over each interface."""
    busy_us = _with_messages(stage_us, flows, profile)
    step_us = max(limits_us(busy_us, [flow for flow in flows if flow.locked]).values())
    return [
        plan_message(
            crossing.values,
            choice,
            flow.link,
            step_us,
            flow.return_every,
            apart=gradient != "exact",
        )
        for crossing, choice, gradient, flow in zip(
            crossings, choices, gradients, flows, strict=True
        )
    ]


def _with_messages(
    stage_us: Sequence[float], flows: Sequence[Flow], profile: DeviceProfile
) -> list[float]:
    """The stages' time with what they spend on sending and receiving."""
    busy_us = list(stage_us)
    for flow in flows:
        back_us = message_us(flow.gradient_nbytes, profile) * returned_share(flow.return_every)
        for stage in (flow.source, flow.to):
            busy_us[stage] += message_us(flow.nbytes, profile) + back_us
    return busy_us


def _sized(
    flows: Sequence[Flow],
    choices: Sequence[InterfaceChoice],
    gradients: Sequence[str],
    stage_us: Sequence[float],
) -> tuple[Flow, ...]:
    """The traffic of each interface with its window."""

    def window(flow: Flow, choice: InterfaceChoice, gradient: str) -> int:
        return 1 if flow.locked else window_of(choice, gradient, flow, stage_us, flows)

    windows = map(window, flows, choices, gradients)
    return tuple(replace(flow, window=window) for flow, window in zip(flows, windows, strict=True))


def _interface(
    crossing: Crossing,
    choice: InterfaceChoice,
    gradients: tuple[str, str],
    flow: Flow,
    message: Message,
    planned: HeadPlan,
    seen: Sequence[Value],
    stage_us: Sequence[float],
) -> PlannedInterface:
    gradient, begin = gradients
    head, cost, reason = planned
    foreseen = choice.predict_weights or in_turns(choice, gradient)
    if head is not None and gradient != LATE:
        head_us = cost.step_us(learns_every(gradient, choice))
        reason += why_predicted(crossing, head_us, stage_us[crossing.source])
    if message.reason:
        reason += f"; {message.reason}"
    tensors, context = (
        tuple(
            PlannedTensor(
                name=v.name,
                shape=v.shape,
                dtype=v.dtype,
                nbytes=v.nbytes,
                differentiable=v.differentiable,
            )
            for v in values
        )
        for values in (crossing.values, seen)
    )
    # By the name in `plan.yaml`: `from` is a keyword of Python's.
    return PlannedInterface.model_validate(
        {
            "name": crossing.name,
            "from": crossing.source,
            "to": crossing.to,
            "after": crossing.after,
            "tensors": tensors,
            "context": context,
            "nbytes": message.nbytes,
            "gradient": gradient,
            "head": head,
            "window": flow.window,
            "warmup": begin,
            "warmup_steps": choice.warmup_steps,
            "warmup_until": choice.warmup_until,
            "guard": choice.guard or False,
            "message": message.dtype,
            "return_every": flow.return_every,
            "predict_weights": gradient == LATE and foreseen,
            "transfer_us": transfer_us(message.nbytes, flow.link),
            "reason": reason,
        }
    )


def by_stage(crossings: Sequence[Crossing], heads: Sequence[HeadCost]) -> Mapping[int, HeadCost]:
    """What the heads at each stage's outgoing interfaces cost together."""
    total: dict[int, HeadCost] = {}
    for crossing, cost in zip(crossings, heads, strict=True):
        total[crossing.source] = total.get(crossing.source, HeadCost()) + cost
    return total
