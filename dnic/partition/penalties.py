"""What penalties decide at one cut, and what the reasons in a plan say of them.

A penalty decides between cuts, between the sources that `auto` may take and between ways to train;
a person who reads the plan must see where it came from, the spec or a probe, and why a gradient is
awaited where it could be predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dnic.graph.graph import Value
from dnic.partition.defaults import source_of
from dnic.partition.misfits import source_misfit
from dnic.partition.plan import PlannedInterface, PlannedTarget
from dnic.partition.predictability import OWN_OBJECTIVE, Penalty
from dnic.partition.prediction import SMALLEST_WINDOW
from dnic.partition.request import AWAITED, InterfaceChoice, PartitionRequest

if TYPE_CHECKING:
    from dnic.partition.choose import Placement


def settled(
    choice: InterfaceChoice,
    gap: int,
    values: Sequence[Value],
    request: PartitionRequest,
    target: PlannedTarget | None,
) -> InterfaceChoice:
    """A choice that leaves `auto` one source to predict with: the one with the smallest penalty.

    Where the spec allows one alone, or nothing is known of the one that `auto` would take, the
    choice stays as it is. Of sources that nothing is known of a local loss alone takes its place,
    and only where all others are ruled out: it has an objective of its own, which may be good
    where no gradient can be predicted.

    Args:
        choice: what is asked for.
        gap: of the fine capture.
        values: the differentiable tensors that cross there.
        request: with the probe, if there is one.
        target: what training targets look like.
    """
    predicted = [source for source in choice.sources if source not in AWAITED]
    if choice.gradient != "auto" or request.predictability is None or len(predicted) < 2:
        return choice
    usual = source_of(choice, values, target)
    known = {source: penalty_of(gap, choice, source, request) for source in (usual, *predicted)}
    if not known[usual].reason:
        return choice
    best = min((s for s in known if known[s].reason), key=lambda s: known[s].steps)
    if known[best].hopeless:
        own = (source for source in predicted if source in OWN_OBJECTIVE)
        best = next((s for s in own if not source_misfit(s, values, choice, target)), best)
    return replace(choice, sources=(best, *(s for s in choice.sources if s in AWAITED)))


def penalty_of(
    gap: int, choice: InterfaceChoice, source: str, request: PartitionRequest
) -> Penalty:
    """The penalty of a source at a gap while windows are open: at the smallest, or as asked."""
    window = SMALLEST_WINDOW if choice.window == "auto" else choice.window
    return request.penalty_at(gap, choice, source, window)


def ruled_out(gap: int, choice: InterfaceChoice, source: str, request: PartitionRequest) -> str:
    """Why a source is not taken at a gap; empty where it may be.

    Args:
        gap: of the fine capture.
        choice: what is asked for there; only `auto` lets itself be ruled out.
        source: what would be taken.
        request: with the probe.
    """
    if choice.gradient != "auto":
        return ""
    penalty = penalty_of(gap, choice, source, request)
    return penalty.reason if penalty.hopeless else ""


def with_penalty(
    interface: PlannedInterface,
    asked: InterfaceChoice,
    choice: InterfaceChoice,
    request: PartitionRequest,
    placement: Placement,
) -> PlannedInterface:
    """The interface, whose reason says what its source of gradients is counted to cost.

    Args:
        interface: as it is planned.
        asked: what is asked for.
        choice: the same, `settled`.
        request: with the probe.
        placement: where the cuts are.
    """
    if interface.gradient == "exact" or interface.to != interface.source + 1:
        return interface
    gap = placement.cuts[interface.source]
    penalty = request.penalty_at(gap, choice, interface.gradient, interface.window)
    if penalty.reason:
        said = [f"counted as {penalty.counted:.0%} more steps ({penalty.reason})"]
    elif interface.gradient in OWN_OBJECTIVE and choice.sources != asked.sources:
        # A probe leaves it alone.
        others = [source for source in asked.sources if source not in (*OWN_OBJECTIVE, *AWAITED)]
        known = [request.penalty_at(gap, choice, s, interface.window) for s in others]
        said = [other.reason for other in known if other.hopeless]
    else:
        return interface
    return interface.model_copy(update={"reason": "; ".join((interface.reason, *said))})
