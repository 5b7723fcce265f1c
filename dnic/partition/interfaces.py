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
    choose_width,
    head_cost,
    message_us,
    stage_slack_us,
    transfer_us,
)
from dnic.errors import SpecError
from dnic.graph.graph import Value
from dnic.graph.shape import text
from dnic.partition.cuts import CutTable
from dnic.partition.plan import (
    PlannedHead,
    PlannedInterface,
    PlannedTarget,
    PlannedTensor,
)
from dnic.partition.prediction import Flow, smallest_window
from dnic.partition.request import InterfaceChoice, PartitionRequest
from dnic.spec.nearest import nearest


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
        """Bytes sent with each batch."""
        return sum(value.nbytes for value in self.values)

    @property
    def gradient_nbytes(self) -> int:
        """Bytes that come back for each batch."""
        return sum(value.nbytes for value in self.differentiable)

    def message_us(self, profile: DeviceProfile) -> float:
        """Time that either stage spends on sending and receiving."""
        return message_us(self.nbytes, profile) + message_us(self.gradient_nbytes, profile)


@dataclass(frozen=True)
class Decided:
    """The interfaces, what they add to the stages, and their traffic."""

    interfaces: tuple[PlannedInterface, ...]
    flows: tuple[Flow, ...]
    stage_us: tuple[float, ...]
    heads: tuple[HeadCost, ...]


def match_choices(
    crossings: Sequence[Crossing],
    request: PartitionRequest,
    table: CutTable,
    cuts: tuple[int, ...],
) -> tuple[InterfaceChoice, ...]:
    """What is asked for each interface.

    A choice names the interface, or any module or operation that ends at its cut.

    Raises:
        SpecError: a choice names no interface of this plan.
    """
    by_name: dict[str, InterfaceChoice] = {}
    neighbours = {c.source: c.name for c in crossings if c.to == c.source + 1}
    for name, choice in request.choices.items():
        where = f"interfaces.{name}"
        found: str | None = name if any(c.name == name for c in crossings) else None
        if found is None and "->" not in name:
            gap = table.gap_after(name, where)
            found = neighbours.get(cuts.index(gap)) if gap in cuts else None
        if found is None:
            raise _no_interface(name, where, crossings)
        by_name[found] = choice
    return tuple(by_name.get(crossing.name, request.default) for crossing in crossings)


def decide_interfaces(
    crossings: Sequence[Crossing],
    choices: Sequence[InterfaceChoice],
    request: PartitionRequest,
    stage_us: Sequence[float],
    profile: DeviceProfile,
    batch_size: int,
    target: PlannedTarget | None,
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
    """
    busy_us = list(stage_us)
    for crossing in crossings:
        for stage in (crossing.source, crossing.to):
            busy_us[stage] += crossing.message_us(profile)
    predicted = [_is_predicted(c, choice) for c, choice in zip(crossings, choices, strict=True)]
    sources = [c.source for c, p in zip(crossings, predicted, strict=True) if p]
    slowest_us = max(busy_us)
    slack_us = {s: stage_slack_us(busy_us[s], slowest_us) / sources.count(s) for s in set(sources)}
    heads: list[HeadCost] = []
    planned: list[tuple[PlannedHead | None, str]] = []
    for crossing, choice, is_predicted in zip(crossings, choices, predicted, strict=True):
        cost, head, why = HeadCost(0, 0.0, 0.0), None, _why_exact(crossing)
        if is_predicted:
            slack = slack_us[crossing.source]
            cost, head, why = _head(crossing, choice, slack, profile, batch_size, target)
        heads.append(cost)
        planned.append((head, why))
    total_us = busy_us.copy()
    for crossing, cost in zip(crossings, heads, strict=True):
        total_us[crossing.source] += cost.total_us
    flows = _flows(crossings, choices, predicted, request, profile, total_us)
    interfaces = tuple(
        _interface(crossing, choice, flow, head, _with_share(why, head, cost, crossing, total_us))
        for crossing, choice, flow, (head, why), cost in zip(
            crossings, choices, flows, planned, heads, strict=True
        )
    )
    return Decided(interfaces, flows, tuple(total_us), tuple(heads))


def context_misfit(target: PlannedTarget | None, value: Value) -> str:
    """Why a head for this tensor cannot see the targets; empty when it can.

    A target is one for each sample, or one for each position of a sequence or map. Classes enter by
    an embedding, real values `[B]` or `[B, n]` by a linear map.
    """
    if target is None:
        return "there are no training data to take targets from"
    mismatch = (
        f"targets {text(target.shape)} give no context to a head at "
        f"{value.name} {text(value.shape)}"
    )
    if target.shape[:1] != ("B",) or value.shape[:1] != ("B",):
        return mismatch
    each = target.shape[1:]
    if target.classes is None:
        return "" if len(each) <= 1 else mismatch
    positions = value.shape[2:] if len(value.shape) >= 4 else value.shape[1:-1]
    return "" if each in ((), positions) else mismatch


def _is_predicted(crossing: Crossing, choice: InterfaceChoice) -> bool:
    return bool(crossing.differentiable) and choice.gradient != "exact"


def _why_exact(crossing: Crossing) -> str:
    if crossing.differentiable:
        return "asked for: each step waits for the true gradient"
    return "nothing differentiable crosses: no gradient is needed"


def _head(
    crossing: Crossing,
    choice: InterfaceChoice,
    slack_us: float,
    profile: DeviceProfile,
    batch_size: int,
    target: PlannedTarget | None,
) -> tuple[HeadCost, PlannedHead, str]:
    values = crossing.differentiable
    misfits = [reason for value in values if (reason := context_misfit(target, value))]
    context = "none" if misfits else choice.context
    classes = (target.classes or 1) if target and context == "target" else None
    k = choice.hidden_layers
    width = choice.width
    if width == "auto":
        width = choose_width(values, batch_size, k, slack_us, profile, classes)
    cost = head_cost(values, batch_size, k, width, profile, classes)
    tensors = "1 differentiable tensor crosses"
    if len(values) > 1:
        tensors = f"{len(values)} differentiable tensors cross"
    why = f"{tensors}; predicting its gradient instead of waiting for it costs"
    if len(values) > 1:
        why = why.replace("its gradient", "their gradients").replace("for it", "for them")
    if misfits and choice.context == "target":
        why = f"no target context: {misfits[0]}; {why}"
    head = PlannedHead(
        hidden_layers=k,
        width=width,
        context=context,
        lr=choice.lr,
        parameters=cost.parameters,
        forward_us=cost.forward_us,
        train_us=cost.train_us,
    )
    return cost, head, why


def _with_share(
    why: str,
    head: PlannedHead | None,
    cost: HeadCost,
    crossing: Crossing,
    total_us: Sequence[float],
) -> str:
    if head is None:
        return why
    share = cost.total_us / total_us[crossing.source] if total_us[crossing.source] else 0.0
    return f"{why} {share:.1%} of stage{crossing.source}'s step"


def _flows(
    crossings: Sequence[Crossing],
    choices: Sequence[InterfaceChoice],
    predicted: Sequence[bool],
    request: PartitionRequest,
    profile: DeviceProfile,
    stage_us: Sequence[float],
) -> tuple[Flow, ...]:
    """The traffic of each interface with its window."""
    open_flows = [
        Flow(
            name=crossing.name,
            source=crossing.source,
            to=crossing.to,
            nbytes=crossing.nbytes,
            gradient_nbytes=crossing.gradient_nbytes,
            link=request.links.pick(crossing.source, crossing.to, profile.link),
            locked=bool(crossing.differentiable) and not is_predicted,
        )
        for crossing, is_predicted in zip(crossings, predicted, strict=True)
    ]
    windows = [
        1
        if flow.locked
        else smallest_window(flow, stage_us, open_flows)
        if choice.window == "auto"
        else choice.window
        for flow, choice in zip(open_flows, choices, strict=True)
    ]
    return tuple(
        replace(flow, window=window) for flow, window in zip(open_flows, windows, strict=True)
    )


def _interface(
    crossing: Crossing,
    choice: InterfaceChoice,
    flow: Flow,
    head: PlannedHead | None,
    reason: str,
) -> PlannedInterface:
    tensors = tuple(
        PlannedTensor(
            name=v.name,
            shape=v.shape,
            dtype=v.dtype,
            nbytes=v.nbytes,
            differentiable=v.differentiable,
        )
        for v in crossing.values
    )
    # By the name in `plan.yaml`: `from` is a keyword of Python's.
    return PlannedInterface.model_validate(
        {
            "name": crossing.name,
            "from": crossing.source,
            "to": crossing.to,
            "after": crossing.after,
            "tensors": tensors,
            "nbytes": crossing.nbytes,
            "gradient": "exact" if head is None else "synthetic",
            "head": head,
            "window": flow.window,
            "warmup_steps": choice.warmup_steps,
            "transfer_us": transfer_us(crossing.nbytes, flow.link),
            "reason": reason,
        }
    )


def _no_interface(name: str, where: str, crossings: Sequence[Crossing]) -> SpecError:
    names = [crossing.name for crossing in crossings]
    close = nearest(name, names)
    return SpecError(
        f"this plan has no interface {name!r}",
        where=where,
        expected=f"one of {', '.join(names)}" if names else "no interface: the plan has one stage",
        hint=close or f"{name} in partition.cuts, to cut there",
    )


def by_stage(crossings: Sequence[Crossing], heads: Sequence[HeadCost]) -> Mapping[int, HeadCost]:
    """What the heads at each stage's outgoing interfaces cost together."""
    total: dict[int, HeadCost] = {}
    for crossing, cost in zip(crossings, heads, strict=True):
        total[crossing.source] = total.get(crossing.source, HeadCost(0, 0.0, 0.0)) + cost
    return total
