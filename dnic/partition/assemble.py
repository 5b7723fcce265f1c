"""From two captures, costs and cuts to the whole `Plan`.

Times and bytes come from the fine graph, where they were computed; names, modules and edges from
the coarse one, which is what code is generated from.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import TypeVar

from dnic import __version__
from dnic.cost import Costs, message_us
from dnic.graph.graph import Graph, Operation
from dnic.partition.check import check_plan
from dnic.partition.choose import Placement, head_memory_bytes
from dnic.partition.context import Sight
from dnic.partition.cuts import cut_points, is_computed
from dnic.partition.evaluate import stage_sums
from dnic.partition.interfaces import Crossing, Decided, by_stage, decide_interfaces
from dnic.partition.lateness import lateness
from dnic.partition.matching import match_choices
from dnic.partition.plan import (
    Plan,
    PlannedInterface,
    PlannedModel,
    PlannedOperation,
    PlannedShared,
    PlannedStage,
    PlannedTarget,
    PlannedTraining,
    Prediction,
)
from dnic.partition.prediction import Flow, predict_step
from dnic.partition.request import PartitionRequest
from dnic.partition.stages import StageOf, crossings, shared_parameters, stages_of

Number = TypeVar("Number", int, float)

_ITEM_BYTES = {"float64": 8, "float16": 2, "bfloat16": 2, "complex64": 8, "complex128": 16}


def make_plan(
    coarse: Graph,
    fine: Graph,
    costs: Costs,
    cuts: tuple[int, ...],
    request: PartitionRequest,
    training: PlannedTraining,
    target: PlannedTarget | None,
    placement: Placement | None = None,
) -> Plan:
    """The plan for these cuts.

    Args:
        coarse: the coarse capture, its spans counting positions of `fine`.
        fine: the fine capture.
        costs: of the fine operations.
        cuts: gaps of the fine graph, as `choose_cuts` returns them.
        request: what was asked for.
        training: how the bundle trains.
        target: what training targets look like; None without training data.
        placement: where each stage is and where gradients come from; None for devices that are
            alike and gradients as the request says.

    Raises:
        SpecError: the request names an interface that this plan does not have.
        PartitionError: the cuts do not suit the coarse capture, or the plan fails its check.
    """
    table = cut_points(fine)
    stage = stages_of(coarse, cuts)
    after = tuple(table.name(gap) for gap in cuts)
    placement = placement or Placement.of(cuts)
    sight = Sight.over(coarse, stage, table, request, target, placement)
    crossing = crossings(coarse, stage, after, sight.wanted)
    speeds = [request.sorts[group].speed for group in placement.groups]
    busy_us = [
        us / speed for us, speed in zip(stage_sums(costs.total_us, cuts), speeds, strict=True)
    ]
    decided = decide_interfaces(
        crossing,
        match_choices(crossing, request, table, cuts),
        request,
        busy_us,
        costs.profile,
        fine.batch_size,
        target,
        placement,
        sight,
    )
    counts = _parameter_counts(fine, costs)
    shared = shared_parameters(coarse, stage)
    plan = Plan(
        dnic=__version__,
        model=PlannedModel(
            name=coarse.name,
            parameters=sum(counts),
            parameter_bytes=sum(costs.parameter_bytes),
            batch_size=fine.batch_size,
            operations=len(coarse.operations),
        ),
        train=training,
        target=target,
        cuts=after,
        stages=tuple(
            planned.model_copy(update={"device": device})
            for planned, device in zip(
                _stages(coarse, fine, costs, cuts, stage, crossing, decided, counts, shared),
                devices_of(placement, request),
                strict=True,
            )
        ),
        interfaces=decided.interfaces,
        shared=shared,
        prediction=_prediction(costs, decided, shared, request, placement),
    )
    check_plan(plan)
    return plan


def devices_of(placement: Placement, request: PartitionRequest) -> tuple[int, ...]:
    """The number of each stage's device; devices are numbered group after group."""
    if placement.chunks > 1:
        return tuple(k % placement.devices for k in range(placement.stages))
    sorts = request.sorts
    free = [sum(group.count for group in sorts[:i]) for i in range(len(sorts))]
    numbers = []
    for group, copies in zip(placement.groups, placement.replicas, strict=True):
        numbers.append(free[group])
        free[group] += copies
    return tuple(numbers)


def _prediction(
    costs: Costs,
    decided: Decided,
    shared: Sequence[PlannedShared],
    request: PartitionRequest,
    placement: Placement,
) -> Prediction:
    flows, stage_us = list(decided.flows), list(decided.stage_us)
    windows = {f.source: f.window for f in decided.interfaces if f.to == f.source + 1}
    for parameter in shared:
        for holder in parameter.holders:
            flows.append(
                Flow(
                    what="parameter",
                    name=parameter.name,
                    source=parameter.owner,
                    to=holder,
                    nbytes=parameter.nbytes,
                    gradient_nbytes=parameter.nbytes,
                    link=request.link(
                        placement.groups[parameter.owner],
                        placement.groups[holder],
                        costs.profile.link,
                    ),
                    locked=False,
                    window=sum(windows.get(i, 2) for i in range(parameter.owner, holder)),
                )
            )
            for index in (parameter.owner, holder):
                stage_us[index] += 2 * message_us(parameter.nbytes, costs.profile)
    step_us, bottleneck = predict_step(stage_us, flows)
    backprop_us = sum(costs.total_us)
    return Prediction(
        profile=costs.profile.name,
        backprop_us=backprop_us,
        step_us=step_us,
        speedup=backprop_us / step_us if step_us else 1.0,
        bottleneck=bottleneck,
        costs=costs.kind,
    )


def _stages(
    coarse: Graph,
    fine: Graph,
    costs: Costs,
    cuts: tuple[int, ...],
    stage: StageOf,
    crossing: Sequence[Crossing],
    decided: Decided,
    counts: Sequence[int],
    shared: Sequence[PlannedShared],
) -> tuple[PlannedStage, ...]:
    """Every stage; `counts` is the number of parameters of each fine operation."""
    total = len(cuts) + 1
    working_us = [f + b for f, b in zip(costs.forward_us, costs.backward_us, strict=True)]
    whole_us = sum(working_us)
    shares = _operation_shares(coarse, working_us, cuts, stage)
    heads = by_stage(crossing, decided.heads)
    parameters = stage_sums(counts, cuts)
    parameter_bytes = stage_sums(costs.parameter_bytes, cuts)
    flops = stage_sums([op.forward_flops for op in fine.operations], cuts)
    forward_us = stage_sums(costs.forward_us, cuts)
    backward_us = stage_sums(costs.backward_us, cuts)
    kept_bytes = stage_sums(costs.memory_bytes, cuts)
    stage_us = stage_sums(working_us, cuts)
    open_bytes = [
        a + p
        for a, p in zip(stage_sums(costs.activation_bytes, cuts), parameter_bytes, strict=True)
    ]
    late = lateness(decided.interfaces, total)
    planned = []
    for i in range(total):
        operations = [op for op in coarse.operations if i in stage[op.name]]
        buffers = sum(
            f.nbytes * (f.window + 1) for f in decided.interfaces if i in (f.source, f.to)
        )
        head_bytes = head_memory_bytes(heads[i]) if i in heads else 0
        # A copy, its gradient, and both on their way.
        copies = sum(4 * s.nbytes for s in shared if i in s.holders)
        planned.append(
            PlannedStage(
                name=f"stage{i}",
                device=i,
                inputs=_inputs(coarse, decided.interfaces, i),
                outputs=("output",) if i == total - 1 else _sent(coarse, decided.interfaces, i),
                modules=tuple(
                    dict.fromkeys(o.target for o in operations if o.kind in ("module", "attribute"))
                ),
                operations=tuple(
                    _operation(op, shares, first=stage[op.name][0] == i) for op in operations
                ),
                memory_bytes=kept_bytes[i]
                + buffers
                + head_bytes
                + copies
                + late[i] * open_bytes[i],
                time_share=stage_us[i] / whole_us if whole_us else 1 / total,
                parameters=parameters[i],
                parameter_bytes=parameter_bytes[i],
                forward_flops=flops[i],
                forward_us=forward_us[i],
                backward_us=backward_us[i],
            )
        )
    return tuple(planned)


def _operation(op: Operation, shares: dict[str, float], *, first: bool) -> PlannedOperation:
    return PlannedOperation(
        name=op.name,
        kind=op.kind,
        target=op.target,
        module=op.module,
        module_class=op.module_class,
        inputs=op.inputs,
        shape=op.value.shape if op.value else None,
        parameters=op.parameter_bytes // _item_bytes(op),
        time_share=shares.get(op.name, 0.0) if first else 0.0,
        repeated=op.free,
    )


def _inputs(coarse: Graph, interfaces: Sequence[PlannedInterface], index: int) -> tuple[str, ...]:
    """What a stage takes, in order of production."""
    if index == 0:
        return tuple(op.name for op in coarse.operations if op.kind == "input")
    names = {t.name for f in interfaces if f.to == index for t in f.tensors}
    return tuple(sorted(names, key=coarse.position.__getitem__))


def _sent(coarse: Graph, interfaces: Sequence[PlannedInterface], index: int) -> tuple[str, ...]:
    """What a stage returns, each tensor once, in order of production."""
    names = {t.name for f in interfaces if f.source == index for t in (*f.tensors, *f.context)}
    return tuple(sorted(names, key=coarse.position.__getitem__))


def _operation_shares(
    coarse: Graph, working_us: Sequence[float], cuts: tuple[int, ...], stage: StageOf
) -> dict[str, float]:
    """Share of the model's time of each coarse operation; they add up to 1.

    Time of fine operations that no coarse one covers goes to the next operation of their stage, or
    to the last.
    """
    cover: list[str | None] = [None] * len(working_us)
    computed: dict[int, list[Operation]] = {}
    for op in coarse.operations:
        if is_computed(op):
            # Of two that cover a position the later runs it: the earlier only prepares arguments.
            cover[op.span[0] : op.span[1]] = [op.name] * (op.span[1] - op.span[0])
            computed.setdefault(stage[op.name][0], []).append(op)
    whole_us = sum(working_us)
    shares: dict[str, float] = {}
    for position, time_us in enumerate(working_us):
        owner = cover[position]
        if owner is None:
            here = computed.get(bisect_right(cuts, position), [])
            behind = [op.name for op in here if op.span[0] > position]
            owner = behind[0] if behind else here[-1].name if here else None
        if owner is not None and whole_us:
            shares[owner] = shares.get(owner, 0.0) + time_us / whole_us
    return shares


def _parameter_counts(fine: Graph, costs: Costs) -> list[int]:
    """Number of parameters that each fine operation is the first to use."""
    return [
        nbytes // _item_bytes(op)
        for op, nbytes in zip(fine.operations, costs.parameter_bytes, strict=True)
    ]


def _item_bytes(op: Operation) -> int:
    """Bytes of one parameter of an operation, taken to have the dtype of its result."""
    return _ITEM_BYTES.get(op.value.dtype, 4) if op.value else 4
