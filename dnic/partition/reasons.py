"""Why the gradient of an interface comes from where it comes from, in words for plan.yaml."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dnic.partition.defaults import source_of
from dnic.partition.misfits import head_misfit
from dnic.partition.penalties import ruled_out
from dnic.partition.request import InterfaceChoice, PartitionRequest

if TYPE_CHECKING:
    from dnic.partition.choose import Placement
    from dnic.partition.interfaces import Crossing
    from dnic.partition.plan import PlannedTarget


def why_exact(
    crossing: Crossing,
    choice: InterfaceChoice,
    request: PartitionRequest,
    placement: Placement,
    target: PlannedTarget | None,
) -> str:
    """Why a gradient is waited for."""
    if not crossing.differentiable:
        return "nothing differentiable crosses: no gradient is needed"
    if choice.gradient == "exact":
        return "asked for: each step waits for the true gradient"
    misfit = head_misfit(crossing.differentiable)
    if misfit:
        return f"{misfit}: each step waits for the true gradient"
    source = "stale" if choice.stale else source_of(choice, crossing.differentiable, target)
    why = ruled_out(placement.cuts[crossing.source], choice, source, request)
    if why:
        return f"{why}: each step waits for the true gradient"
    if "pipeline" in placement.sources:
        return "a pipeline of microbatches: each step waits for the true gradient"
    if request.max_decoupled is not None:
        most = request.max_decoupled
        return f"at most {most} predicted: each step waits for the true gradient here"
    return "waiting for the true gradient costs less here than predicting it"


def why_late(choice: InterfaceChoice, begin: str) -> str:
    """Why a gradient is used without prediction, though it comes late."""
    late = "the true gradient, as late as the window, is used without prediction"
    if begin != "exact":
        late = f"{begin} gradients at first; then {late}"
    if choice.stale:
        return late
    return f"{late}: it comes back soon, and no other late gradient adds to it"


def why_predicted(crossing: Crossing, head_us: float, stage_us: float) -> str:
    """Why one is predicted, and what that costs."""
    share = head_us / stage_us if stage_us else 0.0
    count = len(crossing.differentiable)
    what = "1 differentiable tensor crosses; predicting its gradient instead of waiting for it"
    if count > 1:
        what = f"{count} differentiable tensors cross; predicting their gradients"
        what += " instead of waiting for them"
    return f"{what} costs {share:.1%} of stage{crossing.source}'s step"
