"""From how well a gradient was predicted to the further steps that it is counted to cost.

A step along a direction at the cosine c to the gradient is sure to lower a smooth loss by c^2 of
what a step along the gradient is: with a curvature of at most K, the best length of the step makes
it c^2 |g|^2 / (2 K). So the same way takes 1 / c^2 as many steps, and the penalty is 1 / c^2 - 1,
with c between the gradients of the parameters before the cut: those are what is updated. This is a
heuristic: steps are not of the best length, Adam's are along no gradient, what lies behind the cut
has its true gradient, errors of several steps may cancel (then it asks too much) or add up (then
too little), and a probe looks at the beginning of training only.

A source is ruled out where its gradients are no better than none (`explained` is 0 or less) or
where the penalty would be above 10. A `local` loss does not imitate the gradient: how much the two
agree says little of what it learns, so no penalty is made of it.
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
        found = [self._row(cut, source, window) for cut in self._beside(gap, source)]
        if not found:
            return None
        penalties = [self._of(row) for row in found]
        worst = max(penalties, key=lambda penalty: penalty.steps)
        if self._gaps[found[0].cut] == gap:
            return worst
        names = [row.cut for row in found]
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

    def _of(self, row: ProbedRow) -> Penalty:
        where = f"{self.origin}: {row.source} at lateness {row.lateness}"
        if row.explained <= 0:
            return Penalty(inf, f"{where} is no better than no gradient")
        cosine = row.parameter_cosine
        reason = f"{where} has a cosine of {cosine:.2f}"
        steps = 1 / cosine**2 - 1 if cosine > 0 else inf
        return Penalty(max(steps, 0.0) if steps <= MOST else inf, reason)
