"""What heads and tails can see of the training targets."""

from __future__ import annotations

from collections.abc import Sequence

from dnic.cost import TargetSize
from dnic.graph.graph import Value
from dnic.graph.shape import batch_multiple, resolve, text
from dnic.partition.plan import PlannedTarget


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
