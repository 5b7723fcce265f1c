"""Which cuts are probed: some of those that may be cut, spread evenly over the model's cost.

A model of a hundred operations has as many cuts, most of them inside a module beside a better one.
Those come first that a planner would prefer, few tensors and no module opened, as far from one
another in the model's forward cost as can be; then others where there is room between. Costs are
computed for a stock CPU core, so that every machine probes the same cuts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from dnic.cost import cost_model, load_profile
from dnic.errors import PartitionError
from dnic.graph.graph import Graph
from dnic.partition.cuts import CutPoint, CutTable, cut_points, parameter_uses, resolve_cuts
from dnic.partition.misfits import head_misfit
from dnic.partition.probed import ProbeSkip
from dnic.probe.asked import Asked

PROFILE = "cpu-core"
# From the middle of the cost: a single cut should lie there.
_INNER = 0.25


@dataclass(frozen=True)
class Candidate:
    """A cut that is probed.

    Attributes:
        point: where it is and what crosses.
        share: of the model's forward cost before it, 0 to 1.
        parameters: names of the trained parameters in use before it.
    """

    point: CutPoint
    share: float
    parameters: tuple[str, ...]

    @property
    def kept_bytes(self) -> int:
        """Of one batch's activations and their gradients."""
        return 2 * sum(value.nbytes for value in self.point.differentiable)


def candidates(graph: Graph, asked: Asked) -> tuple[tuple[Candidate, ...], tuple[ProbeSkip, ...]]:
    """The cuts to probe in execution order, and those that cannot be.

    Args:
        graph: fine, at the batch size that is trained with.
        asked: how many, or which, and the memory that they may take.

    Raises:
        SpecError: a cut that was named does not exist.
        PartitionError: no gradient can be predicted at any cut.
    """
    table = cut_points(graph)
    reasons = {gap: _misfit(point) for gap, point in table.points.items()}
    fitting = {gap: point for gap, point in table.points.items() if not reasons[gap]}
    named = None if asked.cuts is None else resolve_cuts(table, asked.cuts, "--cuts")
    refused = {gap: reason for gap, reason in reasons.items() if reason}
    if named is not None:
        fitting = {gap: point for gap, point in fitting.items() if gap in named}
        refused = {gap: reason for gap, reason in refused.items() if gap in named}
    if not fitting:
        raise _nothing(table, refused, "--cuts" if named is not None else graph.name)
    points, shares = list(fitting.values()), _shares(graph)
    if named is None and asked.most_cuts is not None:
        points = _spread(points, shares, asked.most_cuts)
    uses = {name: positions[0] for name, positions in parameter_uses(graph).items()}
    kept, left = _within([_candidate(point, shares, uses) for point in points], asked)
    skipped = [
        ProbeSkip(cut=table.points[gap].after, reason=reason) for gap, reason in refused.items()
    ]
    return kept, (*skipped, *left)


def _misfit(point: CutPoint) -> str:
    """Why no gradient can be predicted at a cut; empty where one can be."""
    if not point.differentiable:
        return "nothing differentiable crosses it: no gradient is needed"
    return head_misfit(point.differentiable)


def _candidate(point: CutPoint, shares: Sequence[float], uses: Mapping[str, int]) -> Candidate:
    before = tuple(name for name, first in uses.items() if first < point.gap)
    return Candidate(point, shares[point.gap], before)


def _shares(graph: Graph) -> tuple[float, ...]:
    """For each gap the share of the forward cost that lies before it."""
    costs = cost_model(graph, load_profile(PROFILE))
    sums = list(accumulate(costs.forward_us, initial=0.0))
    return tuple(us / sums[-1] if sums[-1] else 0.0 for us in sums)


def _spread(points: Sequence[CutPoint], shares: Sequence[float], most: int) -> list[CutPoint]:
    """So many points at most, far from one another: tidy ones first, others where there is room."""
    levels: dict[tuple[int, int, int], list[CutPoint]] = {}
    for point in points:
        untidy = (len(point.shared), len(point.differentiable), point.opened)
        levels.setdefault(untidy, []).append(point)
    inner = [p for p in points if abs(shares[p.gap] - 0.5) <= _INNER] or list(points)
    tidiest = min((len(p.shared), len(p.differentiable), p.opened) for p in inner)
    first = [p for p in inner if p in levels[tidiest]]
    chosen = [min(first, key=lambda p: abs(shares[p.gap] - 0.5))]

    def room(point: CutPoint) -> float:
        return min(abs(shares[point.gap] - shares[other.gap]) for other in chosen)

    for untidy in sorted(levels):
        while len(chosen) < most:
            best = max(levels[untidy], key=room)
            if room(best) < 0.5 / most:
                break
            chosen.append(best)
    return sorted(chosen, key=lambda point: point.gap)


def _within(found: list[Candidate], asked: Asked) -> tuple[tuple[Candidate, ...], list[ProbeSkip]]:
    """As many as fit into the memory, and what does not; of two close ones the first goes."""
    batches = asked.latenesses[-1] + 1
    kept, left = list(found), []
    while len(kept) > 1 and batches * sum(c.kept_bytes for c in kept) > asked.memory_bytes:
        distances = [after.share - before.share for before, after in pairwise(kept)]
        left.append(kept.pop(distances.index(min(distances))))
    room = f"{asked.memory_bytes / 2**30:g} GiB"
    reason = f"{batches} batches of more cuts than the others do not fit into {room} (--memory)"
    return tuple(kept), [ProbeSkip(cut=c.point.after, reason=reason) for c in left]


def _nothing(table: CutTable, refused: Mapping[int, str], where: str) -> PartitionError:
    """The error for a model, or cuts that were named, where there is nothing to predict."""
    if refused:
        gap, why = next(iter(refused.items()))
        return PartitionError(
            f"there is no gradient to predict: after {table.points[gap].after} {why}",
            where=where,
            expected="a cut that a gradient goes back through",
        )
    why = next(iter(table.refused.values()), "it has one operation")
    return PartitionError(
        f"the model cannot be cut anywhere: {why}",
        where=where,
        expected="a model of several modules",
    )
