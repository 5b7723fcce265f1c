"""Which heads and tails cannot be built at an interface, and why.

A head reads activations sample by sample: the batch must lie on one axis, whichever, and not on
several. Its targets may have any shape; a tail cannot do without. Where nothing can be built the
gradient is awaited.
"""

from __future__ import annotations

from collections.abc import Sequence

from dnic.cost import learns_in_replicas, needs_target
from dnic.graph.graph import Value
from dnic.graph.shape import batch_multiple, text
from dnic.partition.plan import PlannedTarget
from dnic.partition.request import InterfaceChoice
from dnic.partition.targets import context_misfit

TAILS = ("virtual", "local")


def head_misfit(values: Sequence[Value]) -> str:
    """Why no head can be built for one of these tensors; empty when each can have one."""
    for value in values:
        if sum(batch_multiple(size) > 0 for size in value.shape) > 1:
            return f"no head for {value.name} {text(value.shape)}, whose batch is on several axes"
        if not value.dtype.startswith(("float", "bfloat")):
            return f"no head for {value.name}, whose dtype is {value.dtype}"
    return ""


def source_misfit(
    source: str, values: Sequence[Value], choice: InterfaceChoice, target: PlannedTarget | None
) -> str:
    """Why a source cannot predict the gradients of these tensors; empty when it can."""
    if source == "none":
        return ""
    misfit = head_misfit(values)
    if misfit or not needs_target(source):
        return misfit
    lost = ""
    if source not in TAILS or choice.tail.loss == "auto":
        following = [v for v in values if any(batch_multiple(size) for size in v.shape)]
        lost = context_misfit(target, following)
    if not lost and source in TAILS:
        lost = choice.tail.misfit(target.classes if target else None)
    return f"no {source} gradient for {values[0].name}: {lost}" if lost and values else ""


def replicas_misfit(source: str, copies: int) -> str:
    """Why a source cannot predict where a stage has so many replicas; empty when it can."""
    if copies == 1 or learns_in_replicas(source):
        return ""
    return f"{source} does not learn in several replicas of a stage together"
