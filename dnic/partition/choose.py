"""From a graph and its costs to the gaps that are cut, and what runs where.

Turns both into the numbers that the solver takes: what a cut at each gap adds to the stages beside
it, to the link and to memory. At this point the stages are not known yet, so that heads are sized
for the slack of an average stage; `make_plan` computes them again for the stages that were chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from typing import Literal

from dnic.cost import (
    NARROWEST,
    Costs,
    HeadCost,
    fitting_head,
    message_us,
    returned_share,
    stage_slack_us,
)
from dnic.errors import PartitionError
from dnic.graph.graph import Graph, Value
from dnic.graph.shape import Shape
from dnic.partition.cuts import CutTable, cut_points, resolve_cuts, resolve_groups
from dnic.partition.defaults import layers_of, learns_every, return_every, source_of
from dnic.partition.exact import DeviceClass, Option, Problem, Solution, solve_exact
from dnic.partition.heads import asked_width, head_costing
from dnic.partition.messages import asked_message
from dnic.partition.misfits import TAILS, replicas_misfit, source_misfit
from dnic.partition.penalties import penalty_of, ruled_out, settled
from dnic.partition.plan import PlannedTarget
from dnic.partition.prediction import SMALLEST_WINDOW
from dnic.partition.request import InterfaceChoice, PartitionRequest
from dnic.partition.targets import target_size

_PARAMETER_BYTES = 4
_ADAM_COPIES = 4
_PENALTY_UNIT = 0.001
# A copy of each shared parameter, its gradient, and both on their way.
_SHARED_COPIES = SMALLEST_WINDOW + 3

HeadEstimate = Callable[[tuple[Value, ...], InterfaceChoice], HeadCost]

# What a cut is for: stages that do not wait for one another, or the stages of a pipeline, all of
# which work on the microbatches of one batch.
Purpose = Literal["decoupled", "pipeline"]
EXACT, SYNTHETIC, PIPELINE = "exact", "synthetic", "pipeline"


@dataclass(frozen=True)
class Placement:
    """Where a model is cut, and what each stage runs on.

    Attributes:
        cuts: gaps of the fine graph, ascending.
        sources: for each cut `exact` or `synthetic`; `pipeline` for the stages of a pipeline.
        groups: for each stage the group of devices (`PartitionRequest.sorts`) that it is on.
        replicas: for each stage how many devices share its batches.
        step_us: the solver's own estimate, before heads are sized for their stages.
        proven: whether no other order of the devices can be better.
        chunks: stages on each device, dealt out in turns: stage `k` of `n` is on device
            `k mod (n / chunks)`.
    """

    cuts: tuple[int, ...]
    sources: tuple[str, ...]
    groups: tuple[int, ...]
    replicas: tuple[int, ...]
    step_us: float
    proven: bool = True
    chunks: int = 1

    @property
    def stages(self) -> int:
        """How many."""
        return len(self.groups)

    @property
    def devices(self) -> int:
        """How many devices are in use."""
        return sum(self.replicas) // self.chunks

    @classmethod
    def of(cls, cuts: tuple[int, ...], source: str = "synthetic") -> Placement:
        """These cuts, all alike, on devices that are all alike."""
        stages = len(cuts) + 1
        return cls(cuts, (source,) * len(cuts), (0,) * stages, (1,) * stages, 0.0)


def choose_cuts(graph: Graph, costs: Costs, request: PartitionRequest) -> tuple[int, ...]:
    """The gaps of the fine graph at which decoupled stages are cut; see `place`."""
    return place(graph, costs, request).cuts


def place(
    graph: Graph,
    costs: Costs,
    request: PartitionRequest,
    purpose: Purpose = "decoupled",
    *,
    stages: int | None = None,
    replicas: Sequence[int] = (1,),
    tidy: bool = True,
    held: float = 1.0,
    reasons: bool = True,
    target: PlannedTarget | None = None,
) -> Placement:
    """The stages with the shortest predicted step; one stage where no cut pays.

    Args:
        graph: the fine capture.
        costs: of its operations, on a device of speed 1.
        request: what is asked for.
        purpose: in a pipeline no cut has a head, and the slowest stage is what counts.
        stages: exactly so many, where the request leaves it open.
        replicas: numbers of copies that a stage may have.
        target: what training targets look like: what heads see of them costs time.
        held: part of a batch's activations that a stage holds at a time.
        reasons: whether to find out what would fit where nothing does; that takes longer.
        tidy: whether cuts that are better to have may make the step a little longer.

    Raises:
        SpecError: a name in the request that does not exist in the graph.
        PartitionError: no partition satisfies the request.
    """
    table = cut_points(graph)
    fixed = resolve_cuts(table, request.cuts or (), "partition.cuts")
    wanted = request.stages or stages
    if request.cuts is not None and request.stages is None:
        wanted = len(fixed) + 1
    together = resolve_groups(graph, request.keep_together, "partition.keep_together")
    heads = _head_estimate(graph.batch_size, costs, wanted or request.devices, request, target)
    problem = _problem(
        table, costs, request, purpose, wanted, fixed, together, tuple(replicas), heads, target
    )
    if request.shard and len(replicas) == 1:
        # Each replica holds a part of what a stage keeps.
        part = tuple(ceil(nbytes / replicas[0]) for nbytes in problem.parameter_memory)
        problem = replace(problem, parameter_memory=part)
    if held < 1:
        part = tuple(ceil(nbytes * held) for nbytes in problem.activation_memory)
        problem = replace(problem, activation_memory=part)
    if not tidy:
        problem = replace(problem, preferences=(), tolerance=0.0)
    return _placement(solve_exact(problem, reasons=reasons), problem)


def _placement(solution: Solution, problem: Problem) -> Placement:
    return Placement(
        cuts=solution.cuts,
        sources=tuple(problem.options[index].name for index in solution.partition.options),
        groups=tuple(group for group, _ in solution.partition.placement),
        replicas=tuple(copies for _, copies in solution.partition.placement),
        step_us=solution.step_us,
        proven=solution.exact,
    )


def _problem(
    table: CutTable,
    costs: Costs,
    request: PartitionRequest,
    purpose: Purpose,
    stages: int | None,
    fixed: tuple[int, ...],
    together: tuple[tuple[int, int], ...],
    replicas: tuple[int, ...],
    head: HeadEstimate,
    target: PlannedTarget | None,
) -> Problem:
    n = len(table.graph.operations)
    choice = choices_by_gap(table, request)
    head_us, messages_us = [0.0] * (n + 1), [0.0] * (n + 1)
    head_bytes, penalty, buffers = [0] * (n + 1), [0] * (n + 1), [0] * (n + 1)
    forth, back = [0] * (n + 1), [0] * (n + 1)
    predicted, awaited = [False] * (n + 1), [False] * (n + 1)
    preferences: list[tuple[int, ...]] = [(0,) * 6] * (n + 1)
    for gap, point in table.points.items():
        here = settled(choice(gap), gap, point.differentiable, request, target)
        source = "stale" if here.stale else source_of(here, point.differentiable, target)
        steps = penalty_of(gap, here, source, request)
        part = _may_part(here, point.differentiable, target, max(replicas))
        part = part and not ruled_out(gap, here, source, request)
        waits = bool(point.differentiable) and not part
        predicted[gap] = not waits
        awaited[gap] = waits or _may_wait(here, request)
        heads = HeadCost() if waits or here.stale else head(point.differentiable, here)
        message = asked_message(point.tensors, here)
        every = 1 if waits else return_every(source, here)
        share = returned_share(every)
        returned = ceil(message.gradient_nbytes * share)
        forth[gap] = message.nbytes + point.shared_nbytes
        back[gap] = returned + point.shared_nbytes
        messages_us[gap] = message_us(message.nbytes, costs.profile)
        messages_us[gap] += message_us(message.gradient_nbytes, costs.profile) * share
        if point.shared:
            messages_us[gap] += 2 * message_us(point.shared_nbytes, costs.profile)
        head_us[gap] = heads.step_us(learns_every(source, here))
        buffers[gap] = message.nbytes * (SMALLEST_WINDOW + 1)
        head_bytes[gap] = buffers[gap] + head_memory_bytes(heads)
        penalty[gap] = round(steps.counted / _PENALTY_UNIT)
        if not point.differentiable:
            penalty[gap] = 0
        buffers[gap] += _SHARED_COPIES * point.shared_nbytes
        counts = (waits, len(point.shared), len(point.differentiable), len(point.tensors))
        preferences[gap] = (*counts, point.opened, point.nbytes)
    if purpose == "pipeline":
        chained = tuple(gap in table.points for gap in range(n + 1))
        held = tuple(point_bytes(table, n))
        options: tuple[Option, ...] = (
            Option(name=PIPELINE, locked=False, allowed=chained, before_bytes=held),
        )
    else:
        options = (
            Option(
                name=SYNTHETIC,
                locked=False,
                allowed=tuple(predicted),
                before_us=tuple(head_us),
                before_bytes=tuple(head_bytes),
                penalty_units=tuple(penalty),
            ),
            Option(
                name=EXACT,
                locked=True,
                allowed=tuple(awaited),
                before_bytes=tuple(point_bytes(table, n)),
            ),
        )
    sorts = request.sorts
    fallback = costs.profile.link
    links = [[request.link(a, b, fallback) for b in range(len(sorts))] for a in range(len(sorts))]
    fixed_us = _sums(costs.forward_fixed_us, costs.backward_fixed_us, costs.update_us)
    kept = _sums(costs.parameter_bytes, costs.gradient_bytes, costs.optimizer_bytes)
    profile = costs.profile
    rate = profile.reduce_bytes_per_s or fallback.bandwidth_bytes_per_s
    latency_us = profile.reduce_latency_us
    return Problem(
        times_us=tuple(
            total - kept_us for total, kept_us in zip(costs.total_us, fixed_us, strict=True)
        ),
        fixed_us=fixed_us,
        candidates=tuple(table.points),
        fixed=fixed,
        keep_together=together,
        devices=tuple(DeviceClass(s.count, s.speed, s.memory_bytes) for s in sorts),
        bandwidth=tuple(tuple(link.bandwidth_bytes_per_s for link in row) for row in links),
        latency_us=tuple(tuple(link.latency_us for link in row) for row in links),
        max_stages=request.devices,
        stages=stages,
        replica_counts=replicas,
        reduce_us_per_byte=(1e6 / rate,) * len(sorts),
        reduce_latency_us=(fallback.latency_us if latency_us is None else latency_us,) * len(sorts),
        parameter_bytes=costs.gradient_bytes,
        options=options,
        unit=_PENALTY_UNIT,
        max_decoupled=request.max_decoupled if purpose == "decoupled" else None,
        message_us=tuple(messages_us),
        nbytes=tuple(forth),
        back_nbytes=tuple(back),
        parameter_memory=tuple(int(nbytes) for nbytes in kept),
        activation_memory=costs.activation_bytes,
        after_bytes=tuple(buffers),
        preferences=tuple(preferences),
    )


def point_bytes(table: CutTable, n: int) -> list[int]:
    """For each gap the bytes of two messages: what waiting for a gradient keeps."""
    kept = [0] * (n + 1)
    for gap, point in table.points.items():
        kept[gap] = 2 * point.nbytes
    return kept


def _sums(*columns: Sequence[float]) -> tuple[float, ...]:
    return tuple(map(sum, zip(*columns, strict=True)))


def _may_part(
    choice: InterfaceChoice,
    values: tuple[Value, ...],
    target: PlannedTarget | None,
    copies: int,
) -> bool:
    """Whether the stages may go on without one another: a gradient is predicted, or is late.

    A source that is asked for by its name is refused, if need be, where the interfaces are known.
    """
    if choice.stale:
        return True
    source = source_of(choice, values, target)
    if choice.gradient == "auto" and replicas_misfit(source, copies):
        return False
    return choice.predicts and not source_misfit(source, values, choice, target)


def _may_wait(choice: InterfaceChoice, request: PartitionRequest) -> bool:
    """Whether a locked cut may stand where a gradient could be predicted."""
    if choice.gradient == "auto":
        return EXACT in choice.sources or request.max_decoupled is not None
    return choice.gradient == EXACT


def head_memory_bytes(heads: HeadCost) -> int:
    """Bytes of heads: parameters, gradients and the two moments of Adam."""
    return heads.parameters * _PARAMETER_BYTES * _ADAM_COPIES


def choices_by_gap(table: CutTable, request: PartitionRequest) -> Callable[[int], InterfaceChoice]:
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
    batch_size: int,
    costs: Costs,
    stages: int,
    request: PartitionRequest,
    target: PlannedTarget | None,
) -> HeadEstimate:
    """What the heads of a cut cost, before the stages are known.

    Hundreds of gaps are crossed by tensors of the same few shapes: each is computed once.
    """
    average_us = sum(costs.total_us) / max(stages, 1)
    slack_us = stage_slack_us(average_us, average_us)

    @cache
    def estimate(shapes: tuple[Shape, ...], choice: InterfaceChoice) -> HeadCost:
        values = [Value("", shape, "float32", 0, True) for shape in shapes]
        if not values:
            return HeadCost()
        source = source_of(choice, values, target)
        if source == "none":
            return HeadCost()
        layers = layers_of(choice, source, values, target)
        given = values, batch_size, layers
        seen = choice.context == "target" or source in TAILS
        size = target_size(target, values) if seen else None
        costing = head_costing(source, choice, timed=request.timed_heads)
        computed = head_costing(source, choice, timed=False)
        wanted, factor = (asked_width(source, choice, layers), choice.one_in), 1.0
        every = learns_every(source, choice)
        if "auto" in wanted:
            # Few heads are worth building: what one takes longer than computed, the others will.
            narrow = None if wanted[0] is None else NARROWEST
            built = costing(*given, narrow, costs.profile, size).step_us(every)
            factor = built / computed(*given, narrow, costs.profile, size).step_us(every)
        width, one_in = fitting_head(
            *given, *wanted, slack_us / factor, costs.profile, size, computed, every
        )
        return costing(*given, width, costs.profile, size, one_in=one_in)

    return lambda values, choice: estimate(tuple(value.shape for value in values), choice)


def check_devices(request: PartitionRequest) -> None:
    """Check that the groups of devices add up.

    Raises:
        PartitionError: they do not.
    """
    total = sum(group.count for group in request.sorts)
    if total != request.devices:
        raise PartitionError(
            f"the groups hold {total} devices, {request.devices} are asked for",
            where="devices.groups",
        )
