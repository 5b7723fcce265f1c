"""Late true gradients, at every second cut or at the only one: where `auto` needs no predictor.

A true gradient that is an update late is nearly as good as one in time, but lateness adds up along
a chain of stages; a predictor is never late, but each one in a chain learns from what the next one
predicts. In turns neither adds up: counted from the last stage, the first cut has late gradients,
the second a local loss, and so on. In four and six stages that learns better than either of them
everywhere (`docs/learning.md`), and half of the tails are saved. A predictor that learns from true
gradients gets them late as well there: with one in between all are predicted.

A single cut has nothing to take turns with. What predicts there is as good as a late gradient, but
for positions that each have a target; there a late one may come later, if a local loss comes first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from dnic.cost import needs_gradients
from dnic.errors import PartitionError
from dnic.partition.defaults import Kind, kind_at
from dnic.partition.misfits import source_misfit
from dnic.partition.penalties import penalty_of
from dnic.partition.plan import PlannedTarget
from dnic.partition.prediction import Flow, smallest_window
from dnic.partition.request import AWAITED, InterfaceChoice, PartitionRequest

if TYPE_CHECKING:
    from dnic.partition.choose import Placement
    from dnic.partition.interfaces import Crossing

LATE = "stale"
# What late gradients begin with where they come too late to begin with them.
BEGINNING = "local"
# What may cross a single cut for its gradient to be late.
ALONE: tuple[Kind, ...] = ("positions",)
# Updates that a gradient may be late in turns with predicted ones, by what crosses: as many as
# leave it better than a local loss in its place. Sequences were not studied.
MOST_LATE: Mapping[Kind, int] = {"vector": 2, "map": 4, "positions": 2, "sequence": 2}
# The same at the only cut, where a run can begin with a local loss.
MOST_LATE_ALONE = 3
# Updates by which it may be late for exact steps to be as good a beginning as a local loss.
MOST_LATE_EXACT = 1
# Part of a step that a stage may wait for it, rather than that it is later.
WAITED = 0.05


def alternated(
    crossings: Sequence[Crossing],
    choices: Sequence[InterfaceChoice],
    gradients: Sequence[str],
    flows: Sequence[Flow],
    request: PartitionRequest,
    stage_us: Sequence[float],
    placement: Placement,
    target: PlannedTarget | None,
) -> list[str]:
    """The sources of all interfaces, where `auto` may take late gradients.

    Args:
        crossings: what crosses between the stages.
        choices: what is asked for each of them.
        gradients: where each gradient comes from otherwise.
        flows: their traffic, windows still to be chosen.
        request: whether the optimizer allows late gradients, and what a probe says.
        stage_us: time of each stage in one step, heads not included.
        placement: where the cuts are.
        target: what training targets look like.
    """
    found = list(gradients)
    over_cuts = _crossed(crossings, gradients, len(stage_us))
    if not _worth_it(list(over_cuts.values()), crossings, target):
        return found
    if not request.may_be_late or max(placement.replicas) > 1:
        return found
    flows = [replace(flow, return_every=1) for flow in flows]
    # Cuts that wait are no neighbours: what they join is late together.
    cuts = list(over_cuts.items())
    for place, (stage, over) in reversed(list(enumerate(cuts))):
        only = over[0]
        most = MOST_LATE[kind_at(crossings[only].differentiable, target)]
        if len(cuts) == 1 and gradients[only] == BEGINNING:
            most = MOST_LATE_ALONE
        before = cuts[place - 1][1] if place else []
        after = cuts[place + 1][1] if place + 1 < len(cuts) else []
        fits = (
            len(over) == 1
            and crossings[only].source == stage
            and not any(found[i] == LATE for i in (*before, *after))
            and not any(_learns_from_true(gradients[i]) for i in before)
            and _may_be_late(choices[only], gradients[only])
            and (late := window_of(choices[only], LATE, flows[only], stage_us, flows)) <= most
            and not _better_predicted(
                placement.cuts[stage], choices[only], gradients[only], request, late
            )
        )
        if fits:
            found[only] = LATE
    return found


def _worth_it(
    over_cuts: Sequence[list[int]], crossings: Sequence[Crossing], target: PlannedTarget | None
) -> bool:
    """Whether there is something to take turns with, or what crosses the only cut is `ALONE`."""
    if len(over_cuts) != 1:
        return len(over_cuts) > 1
    return kind_at(crossings[over_cuts[0][0]].differentiable, target) in ALONE


def _crossed(
    crossings: Sequence[Crossing], gradients: Sequence[str], stages: int
) -> dict[int, list[int]]:
    """What crosses the cut behind each stage and has gradients, where not all of them are exact."""
    found = {}
    for stage in range(stages - 1):
        over = [i for i, c in enumerate(crossings) if c.source <= stage < c.to and c.differentiable]
        if any(gradients[i] != "exact" for i in over):
            found[stage] = over
    return found


def in_turns(choice: InterfaceChoice, gradient: str) -> bool:
    """Whether an interface has late gradients by itself: nobody asked for them."""
    return gradient == LATE and not choice.stale


def window_of(
    choice: InterfaceChoice,
    gradient: str,
    flow: Flow,
    stage_us: Sequence[float],
    flows: Sequence[Flow],
) -> int:
    """The window of an interface that does not wait: what is asked for, or as small as may be.

    Where its gradient is late by itself it is by so many updates, and hardly anything waits.
    """
    if choice.window != "auto":
        return choice.window
    if in_turns(choice, gradient):
        return smallest_window(flow, stage_us, flows, least=1, waited=WAITED)
    return smallest_window(flow, stage_us, flows)


def begins_with(
    crossing: Crossing,
    choice: InterfaceChoice,
    gradient: str,
    flow: Flow,
    stage_us: Sequence[float],
    flows: Sequence[Flow],
    target: PlannedTarget | None,
) -> str:
    """What the gradients of an interface are before they are late; `exact` where they never are.

    Those that come later than by `MOST_LATE_EXACT` do more harm in the first half of a run than a
    local loss does, but for those in turns with local losses, which do it already
    (`docs/learning.md`).

    Raises:
        PartitionError: what was asked for cannot be built here, or needs true gradients.
    """
    if gradient != LATE or choice.warmup == "exact":
        return "exact"
    asked = choice.warmup != "auto"
    begin = choice.warmup if asked else BEGINNING
    misfit = source_misfit(begin, crossing.differentiable, choice, target)
    if not misfit and needs_gradients(begin):
        misfit = f"{begin} learns from true gradients, which do not come back at first"
    if misfit and asked:
        raise PartitionError(
            misfit,
            where=f"interfaces.{crossing.name}.warmup",
            expected="exact, or what predicts here without true gradients",
        )
    if asked:
        return begin
    if in_turns(choice, gradient) and (len(stage_us) > 2 or begin not in choice.sources):
        return "exact"
    late = window_of(choice, gradient, flow, stage_us, flows)
    return begin if late > MOST_LATE_EXACT and not misfit else "exact"


def _learns_from_true(gradient: str) -> bool:
    """Whether a prediction would be judged by, and learn from, what a late stage sends back."""
    return gradient not in AWAITED and needs_gradients(gradient)


def _may_be_late(choice: InterfaceChoice, gradient: str) -> bool:
    free = choice.gradient == "auto" and LATE in choice.sources and gradient not in AWAITED
    return free and choice.return_every == 1


def _better_predicted(
    gap: int, choice: InterfaceChoice, gradient: str, request: PartitionRequest, window: int
) -> bool:
    """Whether the spec or a probe says so, or a probe knows of the prediction alone."""
    late = request.penalty_at(gap, choice, LATE, window)
    predicted = penalty_of(gap, choice, gradient, request)
    untold = request.predictability is not None and predicted.reason and not late.reason
    return late.hopeless or bool(untold) or late.counted > predicted.counted
