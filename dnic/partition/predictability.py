"""From how well a gradient was predicted to the further steps that it is counted to cost.

A step along a direction d is sure to lower a smooth loss by (d G)^2 / (2 K |d|^2), where G is the
loss' gradient, K the most that it bends, and the step as long as is best. A batch's own gradient is
such a direction, too. If a step along the predicted gradient makes the progress p of one along the
true gradient, in lengths along G, it takes 1 / p^2 as many steps to come as far, and the penalty is
1 / p^2 - 1. What is compared are the gradients of the parameters before the cut: those are what is
updated. G is taken from batches that neither gradient is of; beside the batch's own gradient, which
is mostly noise, a head that has learnt what is common to all batches would look worse than it is.

This is a heuristic. Steps are not of the best length and Adam's are along no gradient; what lies
behind the cut has its true gradient; errors of many steps may cancel or add up; and a probe looks
at the beginning of training only.

A source is ruled out where its gradients of the crossing tensors are no better than zero
(`explained` is not above 0), and where the penalty would be above 10. A `local` loss has an
objective of its own: how far it agrees with the gradient says little of what it learns, so no
penalty is made of it.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from functools import cached_property
from math import inf

from dnic.partition.probed import Probe, ProbedRow

# As much as a spec may say; what would cost more is not taken.
MOST = 10.0
# Sources with an objective of their own.
OWN_OBJECTIVE = ("local",)
NO_CONTEXT = "synthetic-no-context"


@dataclass(frozen=True)
class Penalty:
    """What a source costs at a cut.

    Attributes:
        steps: share of further steps for the same quality; infinite where it is ruled out.
        reason: where the figure comes from.
    """

    steps: float
    reason: str

    @property
    def hopeless(self) -> bool:
        """Whether the source is ruled out."""
        return self.steps == inf

    @property
    def counted(self) -> float:
        """The share that is counted: a source that is asked for all the same costs the most."""
        return min(self.steps, MOST)


@dataclass(frozen=True)
class Predictability:
    """A probe, asked for penalties.

    Attributes:
        probe: of the model that is planned.
        origin: the file's name, for reasons.
    """

    probe: Probe
    origin: str = "probe.json"

    def penalty(self, gap: int, source: str, window: int) -> Penalty | None:
        """What a source costs at a gap; None where the probe says nothing of it.

        A gap between two that were measured is taken to be as bad as the worse of them. Of the
        measured latenesses the smallest counts that is at least the window, or else the largest.

        Args:
            gap: of the fine capture.
            source: as the probe calls it.
            window: steps after which the true gradient is there.
        """
        if source in OWN_OBJECTIVE:
            return None
        rows = [self._row(cut, source, window) for cut in self._beside(gap, source)]
        found = [(row.cut, penalty) for row in rows if (penalty := self._of(row)) is not None]
        if not found:
            return None
        _, worst = max(found, key=lambda pair: pair[1].steps)
        names = [name for name, _ in found]
        if self._gaps[names[0]] == gap:
            return worst
        beside = f"the worse of {' and '.join(names)}" if len(names) > 1 else f"after {names[0]}"
        return Penalty(worst.steps, f"{worst.reason} ({beside})")

    @cached_property
    def _gaps(self) -> dict[str, int]:
        return {cut.after: cut.gap for cut in self.probe.cuts}

    def _beside(self, gap: int, source: str) -> list[str]:
        """The measured cut at a gap, or those on either side of it."""
        measured = {row.cut for row in self.probe.rows if row.source == source}
        cuts = sorted((self._gaps[name], name) for name in measured)
        place = bisect_left(cuts, (gap, ""))
        if place < len(cuts) and cuts[place][0] == gap:
            return [cuts[place][1]]
        return [name for _, name in cuts[max(place - 1, 0) : place + 1]]

    def _row(self, cut: str, source: str, window: int) -> ProbedRow:
        rows = [row for row in self.probe.of(cut) if row.source == source]
        rows.sort(key=lambda row: row.lateness)
        return next((row for row in rows if row.lateness >= window), rows[-1])

    def _of(self, row: ProbedRow) -> Penalty | None:
        where = f"{self.origin}: {row.source} at lateness {row.lateness}"
        if row.compared == "tensors" and row.explained <= 0:
            return Penalty(inf, f"{where} is no better than no gradient")
        steps = further_steps(row)
        if steps is None:
            return None
        return Penalty(steps, f"{where} makes {row.progress:.2f} of the progress")


def further_steps(row: ProbedRow) -> float | None:
    """Share of further steps that follows from a row's progress.

    Infinite above 10, or without any progress; None where progress cannot be told from noise.
    """
    if row.progress is None:
        return None
    steps = 1 / row.progress**2 - 1 if row.progress > 0 else inf
    return max(steps, 0.0) if steps <= MOST else inf
