"""What stages and cuts of a graph amount to, in the words of the schedule model.

`dnic.schedule` knows times and bytes only. This sums them over the operations of each stage, for
any cuts, without the coarse capture: what crosses is read off the fine graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from math import ceil
from typing import TypeVar

from dnic.cost import Costs, message_us
from dnic.graph.graph import Graph
from dnic.partition.choose import Placement
from dnic.partition.cuts import CutTable
from dnic.partition.interfaces import Crossing
from dnic.partition.plan import PlannedShared
from dnic.partition.request import PartitionRequest
from dnic.partition.stages import crossings, shared_parameters, stages_of
from dnic.schedule import CutWork, Machine, Outcome, StageWork

Number = TypeVar("Number", int, float)

# What a backward pass in two parts takes more: 6% on linear layers, 13% on transformer blocks, both
# measured on one core.
_DIVISION = 0.1


def stage_works(
    costs: Costs,
    cuts: Sequence[int],
    *,
    share: float = 1.0,
    speeds: Sequence[float] = (),
    replicas: Sequence[int] = (),
) -> tuple[StageWork, ...]:
    """The work of each stage.

    Args:
        costs: of the fine operations, at the full batch.
        cuts: gaps of the fine graph, ascending.
        share: part of the batch that a stage works on at a time: a microbatch. The result is for
            the full batch and scales down to exactly what the costs say of the share.
        speeds: of the stages' devices, where the device of the costs has 1.
        replicas: of each stage.
    """
    stages = len(cuts) + 1
    speeds = speeds or (1.0,) * stages
    replicas = replicas or (1,) * stages
    parts = {copies: costs.at(share / copies) for copies in set(replicas)}
    forward = {copies: stage_sums(part.forward_us, cuts) for copies, part in parts.items()}
    backward = {copies: stage_sums(part.backward_us, cuts) for copies, part in parts.items()}
    weight = {copies: stage_sums(_weight_us(part), cuts) for copies, part in parts.items()}
    update = stage_sums(costs.update_us, cuts)
    activations = stage_sums(costs.activation_bytes, cuts)
    columns = (costs.parameter_bytes, costs.gradient_bytes, costs.optimizer_bytes)
    parameters, gradients, state = (stage_sums(column, cuts) for column in columns)
    tensors = stage_sums(costs.gradient_tensors, cuts)
    return tuple(
        StageWork(
            forward_us=forward[copies][i] * copies / share / speeds[i],
            backward_us=backward[copies][i] * copies / share / speeds[i],
            weight_us=weight[copies][i] * copies / share / speeds[i],
            update_us=update[i] / speeds[i],
            parameter_bytes=parameters[i],
            gradient_bytes=gradients[i],
            optimizer_bytes=state[i],
            activation_bytes=activations[i],
            replicas=copies,
            gradient_tensors=tensors[i],
        )
        for i, copies in enumerate(replicas)
    )


def _weight_us(costs: Costs) -> tuple[float, ...]:
    """What of each operation's backward time only its parameters' gradients need.

    Half: the gradient of a matrix product for its weights takes as many operations as that for its
    input. Where parameters are few beside the input (norms) the true part is smaller.
    """
    pairs = zip(costs.backward_us, costs.gradient_bytes, strict=True)
    return tuple(us / 2 if nbytes else 0.0 for us, nbytes in pairs)


def chain_works(
    graph: Graph,
    table: CutTable,
    costs: Costs,
    cuts: tuple[int, ...],
    request: PartitionRequest,
    groups: Sequence[int],
) -> tuple[CutWork, ...]:
    """What crosses each cut of a pipeline, all of it sent on from each stage to the next.

    A tensor that skips stages is handed through them, and so counts at every cut that it crosses.
    """
    works = []
    for i, gap in enumerate(cuts):
        point = table.points[gap]
        back = sum(value.nbytes for value in point.differentiable)
        works.append(
            CutWork(
                nbytes=point.nbytes,
                back_nbytes=back,
                link=request.link(groups[i], groups[i + 1], costs.profile.link),
                message_us=message_us(point.nbytes, costs.profile),
                message_fixed_us=costs.profile.overhead_us if point.nbytes else 0.0,
                back_message_us=message_us(back, costs.profile),
            )
        )
    return tuple(works)


def crossings_of(graph: Graph, table: CutTable, cuts: tuple[int, ...]) -> tuple[Crossing, ...]:
    """What crosses between every two stages of the fine graph."""
    after = tuple(table.name(gap) for gap in cuts)
    return crossings(graph, stages_of(graph, cuts), after)


def shared_of(graph: Graph, cuts: tuple[int, ...]) -> tuple[PlannedShared, ...]:
    """Parameters that several stages of the fine graph use."""
    return shared_parameters(graph, stages_of(graph, cuts))


def in_parts(
    outcome: Outcome,
    works: Sequence[StageWork],
    placement: Placement,
    request: PartitionRequest,
    microbatches: int = 1,
) -> Outcome:
    """The same where each replica of a stage holds a part of it, if that is asked for.

    With microbatches parameters and gradients are whole during a step. What gathering them takes
    is not counted: it is of the size of the all-reduce that it stands in for.
    """
    if not request.shard:
        return outcome
    memory = list(outcome.peak_memory_bytes)
    device = 0
    for work, copies in zip(works, placement.replicas, strict=True):
        divided = work.optimizer_bytes
        if microbatches == 1:
            divided += work.parameter_bytes + work.gradient_bytes
        for _ in range(copies):
            memory[device] -= divided - ceil(divided / copies)
            device += 1
    return replace(outcome, peak_memory_bytes=tuple(memory))


def machine_of(costs: Costs, *, overlap: float) -> Machine:
    """What does not belong to one stage, from the device's profile."""
    profile = costs.profile
    return Machine(
        step_us=profile.step_us,
        microbatch_us=profile.microbatch_us,
        reduce_bytes_per_s=profile.reduce_bytes_per_s,
        reduce_latency_us=profile.reduce_latency_us,
        reduce_tensor_us=profile.reduce_tensor_us,
        skew=profile.skew,
        overlap=overlap,
        overhead_us=profile.overhead_us,
        message_bytes_per_s=profile.message_bytes_per_s,
        division=_DIVISION,
        link=profile.link,
    )


def with_loader(works: tuple[StageWork, ...], loader_us: float) -> tuple[StageWork, ...]:
    """The same, with reading batches at the last stage too: a pipeline's needs the targets."""
    return (*works[:-1], replace(works[-1], loader_us=loader_us))


def stage_sums(entries: Sequence[Number], cuts: Sequence[int]) -> list[Number]:
    """Sums of fine operations' entries over each stage."""
    return [sum(entries[a:b]) for a, b in pairwise((0, *cuts, len(entries)))]
