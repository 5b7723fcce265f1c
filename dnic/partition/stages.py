"""Which stage each operation of the coarse capture belongs to, and what crosses between stages.

The cuts are gaps of the fine graph; code is generated from the coarse one, in which every uncut
module is one operation. The two are joined by `Operation.span`: the range of fine positions that a
coarse operation covers.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from dnic.errors import PartitionError
from dnic.graph.graph import Graph, Operation
from dnic.graph.shape import batch_multiple, text
from dnic.partition.cuts import is_computed, parameter_uses
from dnic.partition.interfaces import Crossing
from dnic.partition.plan import PlannedShared

StageOf = Mapping[str, tuple[int, ...]]


def stages_of(coarse: Graph, cuts: tuple[int, ...]) -> StageOf:
    """The stages of every coarse operation, by its name.

    One stage each; a parameter or buffer that is fetched on its own, and what follows from
    constants alone, belongs to every stage that uses it.

    Args:
        coarse: the coarse capture.
        cuts: gaps of the fine graph, ascending.

    Raises:
        PartitionError: a cut falls inside an operation, or an operation uses a result of a later
            stage.
    """
    stage: dict[str, tuple[int, ...]] = {}
    users: dict[str, set[int]] = {}
    for op in reversed(coarse.operations):
        if op.kind == "attribute" or op.free:
            used = users.get(op.name) or {bisect_right(cuts, op.span[0])}
            stage[op.name] = tuple(sorted(used))
        else:
            stage[op.name] = (_stage_of(op, cuts),)
        for name in op.inputs:
            users.setdefault(name, set()).update(stage[op.name])
    _check_forward(coarse, stage)
    return stage


def crossings(
    coarse: Graph,
    stage: StageOf,
    after: tuple[str, ...],
    wanted: Mapping[int, Sequence[Operation]] = MappingProxyType({}),
) -> tuple[Crossing, ...]:
    """What crosses from each stage to each other, pairs in order.

    Args:
        coarse: the coarse capture.
        stage: of its operations.
        after: what each cut is called.
        wanted: for each stage what its head is to see of earlier ones (`dnic.partition.context`).

    Raises:
        PartitionError: something that is not a tensor would have to cross.
    """
    pairs: dict[tuple[int, int], dict[str, Operation]] = {}
    for op in coarse.operations:
        if op.kind == "attribute" or op.free:
            continue
        (to,) = stage[op.name]
        for name in op.inputs:
            if to not in stage[name]:
                pairs.setdefault((stage[name][0], to), {})[name] = coarse.by_name[name]
    _send_batch_size(coarse, stage, pairs)
    for to, ops in wanted.items():
        for op in ops:
            pairs.setdefault((stage[op.name][0], to), {}).setdefault(op.name, op)
    found = []
    for (source, to), sent_ops in sorted(pairs.items()):
        ops = sorted(sent_ops.values(), key=lambda op: coarse.position[op.name])
        values = []
        for op in ops:
            if op.value is None:
                raise PartitionError(
                    f"{op.name} would go from stage{source} to stage{to} and is not a tensor",
                    where=op.source or op.target,
                    hint="keep_together joins the modules that share it",
                )
            values.append(op.value)
        neighbour = to == source + 1
        name = after[source] if neighbour else f"{ops[-1].name}->stage{to}"
        found.append(Crossing(name, source, to, after[source], tuple(values)))
    return tuple(found)


def _send_batch_size(
    coarse: Graph, stage: StageOf, pairs: dict[tuple[int, int], dict[str, Operation]]
) -> None:
    """A stage that must know the number of samples gets a tensor that tells: an input of the model.

    Most stages have one anyway.
    """
    inputs = [op for op in coarse.operations if op.kind == "input" and _follows_batch(op)]
    needing = {i for op in coarse.operations if op.uses_batch for i in stage[op.name]}
    for to in sorted(needing - {0}):
        told = [op for (_, end), sent in pairs.items() if end == to for op in sent.values()]
        if inputs and not any(_follows_batch(op) for op in told):
            smallest = min(inputs, key=lambda op: op.value.nbytes if op.value else 0)
            pairs.setdefault((0, to), {})[smallest.name] = smallest


def _follows_batch(op: Operation) -> bool:
    return op.value is not None and any(batch_multiple(size) for size in op.value.shape)


def shared_parameters(coarse: Graph, stage: StageOf) -> tuple[PlannedShared, ...]:
    """Trained parameters that several stages use; the first stage that does owns each."""
    found = []
    for name, positions in parameter_uses(coarse).items():
        stages = sorted({stage[coarse.operations[i].name][0] for i in positions})
        if len(stages) > 1:
            weight = coarse.weights[name]
            found.append(
                PlannedShared(
                    name=name,
                    aliases=weight.aliases,
                    owner=stages[0],
                    holders=tuple(stages[1:]),
                    nbytes=weight.nbytes,
                )
            )
    return tuple(found)


def _stage_of(op: Operation, cuts: tuple[int, ...]) -> int:
    if op.kind == "input":
        return 0
    if op.kind == "output":
        return len(cuts)
    first, last = op.span[0], max(op.span[0], op.span[1] - 1)
    stage = bisect_right(cuts, first)
    if bisect_right(cuts, last) != stage:
        shape = f" {text(op.value.shape)}" if op.value else ""
        raise PartitionError(
            f"a cut falls inside {op.name}{shape}",
            where=op.source or op.target,
            expected=f"no cut from {op.span[0] + 1} to {op.span[1] - 1}; the cuts are {list(cuts)}",
        )
    return stage


def _check_forward(coarse: Graph, stage: StageOf) -> None:
    for op in coarse.operations:
        for name in op.inputs:
            sent = coarse.by_name[name]
            if is_computed(sent) and not sent.free and stage[name][0] > stage[op.name][0]:
                raise PartitionError(
                    f"{op.name} in stage{stage[op.name][0]} uses {name}, "
                    f"which stage{stage[name][0]} makes",
                    where=op.source or op.target,
                    expected="edges that point forward",
                )
