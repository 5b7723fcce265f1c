"""What the reasons in a plan say of penalties: how many further steps are counted, and why.

A penalty decides between cuts and between ways to train; a person who reads the plan must see where
it came from, the spec or a probe, and why a gradient is awaited where it could be predicted.
"""

from __future__ import annotations

from dnic.partition.choose import Placement
from dnic.partition.plan import PlannedInterface
from dnic.partition.prediction import SMALLEST_WINDOW
from dnic.partition.request import InterfaceChoice, PartitionRequest


def ruled_out(
    stage: int, choice: InterfaceChoice, request: PartitionRequest, placement: Placement
) -> str:
    """Why a probe rules out predicting at the cut behind a stage; empty where it does not.

    Args:
        stage: before the cut.
        choice: what is asked for there; only `auto` lets itself be ruled out.
        request: with the probe.
        placement: where the cuts are.
    """
    if choice.gradient != "auto":
        return ""
    window = SMALLEST_WINDOW if choice.window == "auto" else choice.window
    source = "stale" if choice.stale else "synthetic"
    penalty = request.penalty_at(placement.cuts[stage], choice, source, window)
    return penalty.reason if penalty.hopeless else ""


def with_penalty(
    interface: PlannedInterface,
    choice: InterfaceChoice,
    request: PartitionRequest,
    placement: Placement,
) -> PlannedInterface:
    """The interface, whose reason says what its source of gradients is counted to cost."""
    if interface.gradient == "exact" or interface.to != interface.source + 1:
        return interface
    gap = placement.cuts[interface.source]
    penalty = request.penalty_at(gap, choice, interface.gradient, interface.window)
    if not penalty.reason:
        return interface
    counted = f"counted as {penalty.counted:.0%} more steps ({penalty.reason})"
    return interface.model_copy(update={"reason": f"{interface.reason}; {counted}"})
