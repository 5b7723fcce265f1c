"""From a graph and its costs to the gaps that are cut.

Turns both into the numbers that the solver takes: what a cut at each gap adds to the stages beside
it, to the link and to memory. At this point the stages are not known yet, so that heads are sized
for the slack of an average stage, and links are the default one; `make_plan` computes both again
for the stages that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from dnic.cost import (
    Costs,
    HeadCost,
    Link,
    choose_width,
    head_cost,
    message_us,
    occupancy_us,
    stage_slack_us,
)
from dnic.graph.graph import Graph, Value
from dnic.graph.shape import Shape
from dnic.partition.cuts import CutPoint, CutTable, cut_points, resolve_cuts, resolve_groups
from dnic.partition.heads import head_misfit
from dnic.partition.prediction import SMALLEST_WINDOW
from dnic.partition.request import InterfaceChoice, PartitionRequest
from dnic.partition.solver import CutProblem, solve

_PARAMETER_BYTES = 4
_ADAM_COPIES = 4


def choose_cuts(graph: Graph, costs: Costs, request: PartitionRequest) -> tuple[int, ...]:
    """The gaps of the fine graph at which it is cut; none when one stage is fastest.

    Args:
        graph: the fine capture.
        costs: of its operations.
        request: what is asked for.

    Raises:
        SpecError: a name in the request that does not exist in the graph.
        PartitionError: no partition satisfies the request.
    """
    table = cut_points(graph)
    fixed = resolve_cuts(table, request.cuts or (), "partition.cuts")
    stages = request.stages
    if request.cuts is not None and stages is None:
        stages = len(fixed) + 1
    together = resolve_groups(graph, request.keep_together, "partition.keep_together")
    return solve(_problem(table, costs, request, stages, fixed, together)).cuts


def _problem(
    table: CutTable,
    costs: Costs,
    request: PartitionRequest,
    stages: int | None,
    fixed: tuple[int, ...],
    together: tuple[tuple[int, int], ...],
) -> CutProblem:
    n = len(table.graph.operations)
    choice = _choices_by_gap(table, request)
    link = request.links.pick(0, 1, costs.profile.link)
    head = _head_estimate(table.graph.batch_size, costs, stages or request.devices)
    before_us, after_us, link_us = ([0.0] * (n + 1) for _ in range(3))
    before_bytes, after_bytes = ([0] * (n + 1) for _ in range(2))
    preferences: list[tuple[int, ...]] = [(0,) * 6] * (n + 1)
    candidates = []
    for gap, point in table.points.items():
        # Stages that wait for one another are no faster than one: only worth it when asked for.
        waits = choice(gap).gradient != "exact" and bool(head_misfit(point.differentiable))
        if stages is not None or not waits or gap in fixed:
            candidates.append(gap)
        heads = head(point.differentiable, choice(gap))
        messages_us, link_us[gap] = _traffic(point, costs, link)
        messages_us += 2 * message_us(point.shared_nbytes, costs.profile) if point.shared else 0.0
        before_us[gap] = heads.total_us + messages_us
        after_us[gap] = messages_us
        buffers = point.nbytes * (SMALLEST_WINDOW + 1)
        before_bytes[gap] = buffers + head_memory_bytes(heads)
        # A copy of each shared parameter, its gradient, and both on their way.
        after_bytes[gap] = buffers + (SMALLEST_WINDOW + 3) * point.shared_nbytes
        counts = (waits, len(point.shared), len(point.differentiable), len(point.tensors))
        preferences[gap] = (*counts, point.opened, point.nbytes)
    return CutProblem(
        times_us=costs.total_us,
        candidates=tuple(candidates),
        max_stages=request.devices,
        stages=stages,
        fixed=fixed,
        keep_together=together,
        before_us=tuple(before_us),
        after_us=tuple(after_us),
        link_us=tuple(link_us),
        memory_bytes=costs.memory_bytes,
        before_bytes=tuple(before_bytes),
        after_bytes=tuple(after_bytes),
        limits_bytes=request.limits_bytes,
        preferences=tuple(preferences),
    )


def head_memory_bytes(heads: HeadCost) -> int:
    """Bytes of heads: parameters, gradients and the two moments of Adam."""
    return heads.parameters * _PARAMETER_BYTES * _ADAM_COPIES


def _choices_by_gap(table: CutTable, request: PartitionRequest) -> Callable[[int], InterfaceChoice]:
    """What is asked for the interface at each gap.

    Names that stand for no single gap (interfaces that skip stages) are left to `make_plan`.
    """
    named = {
        table.gap_after(name, f"interfaces.{name}"): choice
        for name, choice in request.choices.items()
        if "->" not in name
    }
    return lambda gap: named.get(gap, request.default)


def _head_estimate(
    batch_size: int, costs: Costs, stages: int
) -> Callable[[tuple[Value, ...], InterfaceChoice], HeadCost]:
    """What the heads of a cut cost, before the stages are known.

    Hundreds of gaps are crossed by tensors of the same few shapes: each is computed once.
    """
    average_us = sum(costs.total_us) / max(stages, 1)
    slack_us = stage_slack_us(average_us, average_us)

    @cache
    def estimate(shapes: tuple[Shape, ...], choice: InterfaceChoice) -> HeadCost:
        values = [Value("", shape, "float32", 0, True) for shape in shapes]
        if not values or choice.gradient == "exact" or head_misfit(values):
            return HeadCost()
        k = choice.hidden_layers
        width = choice.width
        if width == "auto":
            width = choose_width(values, batch_size, k, slack_us, costs.profile)
        return head_cost(values, batch_size, k, width, costs.profile)

    return lambda values, choice: estimate(tuple(value.shape for value in values), choice)


def _traffic(point: CutPoint, costs: Costs, link: Link) -> tuple[float, float]:
    """Time that each of the two stages spends on messages, and that the link is busy one way."""
    back = sum(value.nbytes for value in point.differentiable)
    messages_us = message_us(point.nbytes, costs.profile) + message_us(back, costs.profile)
    return messages_us, occupancy_us(point.nbytes + point.shared_nbytes, link)
