"""Which heads can be built at an interface, how wide they are, and why.

A head reads activations sample by sample: the batch must lie on one axis, whichever, and not on
several. Its targets may have any shape. Where no head can be built the gradient is awaited.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnic.cost import DeviceProfile, HeadCost, TargetSize, fitting_head, head_cost, time_head
from dnic.graph.graph import Value
from dnic.graph.shape import batch_multiple, resolve, text
from dnic.partition.plan import PlannedHead, PlannedTarget
from dnic.partition.request import InterfaceChoice


def head_misfit(values: Sequence[Value]) -> str:
    """Why no head can be built for one of these tensors; empty when each can have one."""
    for value in values:
        if sum(batch_multiple(size) > 0 for size in value.shape) > 1:
            return f"no head for {value.name} {text(value.shape)}, whose batch is on several axes"
        if not value.dtype.startswith(("float", "bfloat")):
            return f"no head for {value.name}, whose dtype is {value.dtype}"
    return ""


def context_misfit(target: PlannedTarget | None, values: Sequence[Value]) -> str:
    """Why heads for these tensors cannot see the targets; empty when they can."""
    if target is None:
        return "there are no training data to take targets from"
    sizes = resolve(target.shape, 1)
    if not target.shape or not batch_multiple(target.shape[0]) or 0 in sizes:
        return f"targets {text(target.shape)} are not one for each sample"
    if target.dtype.startswith("complex"):
        return f"targets are {target.dtype}"
    for value in values:
        if not any(batch_multiple(size) for size in value.shape):
            return f"{value.name} {text(value.shape)} has no axis of samples"
    return ""


def target_size(target: PlannedTarget | None, values: Sequence[Value]) -> TargetSize | None:
    """What heads for these tensors see of the targets; None where they cannot see any."""
    if target is None or context_misfit(target, values):
        return None
    return TargetSize(resolve(target.shape, 1)[1:], target.classes)


def plan_head(
    values: Sequence[Value],
    choice: InterfaceChoice,
    slack_us: float,
    profile: DeviceProfile,
    batch_size: int,
    target: PlannedTarget | None,
    *,
    timed: bool = False,
) -> tuple[PlannedHead, HeadCost, str]:
    """The head of an interface, what it costs, and a remark where it differs from what was asked.

    Args:
        values: the differentiable tensors that cross.
        choice: what is asked for.
        slack_us: time that it may cost more than the cheapest one.
        profile: the device.
        batch_size: samples in a batch.
        target: what training targets look like; None without training data.
        timed: whether the head is built and timed on this machine.
    """
    misfit = context_misfit(target, values)
    context = "none" if misfit else choice.context
    size = target_size(target, values) if context == "target" else None
    costing = time_head if timed else head_cost
    given = values, batch_size, choice.hidden_layers
    wanted = choice.width, choice.one_in
    width, one_in = fitting_head(*given, *wanted, slack_us, profile, size, costing)
    cost = costing(*given, width, profile, size, one_in=one_in)
    head = PlannedHead(
        hidden_layers=choice.hidden_layers,
        width=width,
        context=context,
        lr=choice.lr,
        one_in=one_in,
        train_every=choice.train_every,
        parameters=cost.parameters,
        forward_us=cost.forward_us,
        train_us=cost.train_us,
    )
    lost = misfit and choice.context == "target"
    return head, cost, f"no target context: {misfit}; " if lost else ""
