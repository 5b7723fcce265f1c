"""What a head sees beside the activation and the targets: tensors of the model that a spec names.

A name is an input of the model, or a module (then what it returns is meant). A head runs where its
interface begins, so the tensor must be at hand in that stage: made there, or received. Where it is
not, it is sent there from the stage that makes it, without a gradient, as the batch size is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from dnic.errors import PartitionError
from dnic.graph.graph import Graph, Operation, Value
from dnic.graph.shape import batch_multiple, text
from dnic.partition.choose import SYNTHETIC, Placement, choices_by_gap
from dnic.partition.cuts import CutTable, last_positions, unknown_name
from dnic.partition.defaults import source_of
from dnic.partition.misfits import TAILS
from dnic.partition.plan import PlannedTarget
from dnic.partition.request import AWAITED, InterfaceChoice, PartitionRequest

if TYPE_CHECKING:
    from dnic.partition.interfaces import Crossing
    from dnic.partition.stages import StageOf


@dataclass(frozen=True)
class Sight:
    """The tensors that heads can see.

    Attributes:
        graph: fine for costs, coarse for the plan.
        stage: of its operations.
        wanted: for each stage the operations of earlier ones whose results its head is to see,
            without a gradient.
    """

    graph: Graph
    stage: StageOf
    wanted: Mapping[int, Sequence[Operation]]

    @classmethod
    def over(
        cls,
        graph: Graph,
        stage: StageOf,
        table: CutTable,
        request: PartitionRequest,
        target: PlannedTarget | None,
        placement: Placement,
    ) -> Sight:
        """What heads can see of a graph.

        Args:
            graph: fine or coarse.
            stage: of its operations.
            table: of the fine graph.
            request: what is asked for each interface.
            target: what training targets look like.
            placement: the cuts, and where gradients are waited for.

        Raises:
            SpecError: there is no such tensor.
            PartitionError: it is not one for each sample.
        """
        wanted = {}
        choice_at = choices_by_gap(table, request)
        for index, gap in enumerate(placement.cuts):
            choice, where = choice_at(gap), f"interfaces.{table.name(gap)}.head.context"
            ops = [tensor_named(name, graph, where) for name in choice.sees]
            source = source_of(choice, table.points[gap].differentiable, target)
            apart = placement.sources[index] == SYNTHETIC and not choice.stale
            if apart and takes_context(source):
                earlier = (op for op in ops if max(stage[op.name]) < index)
                wanted[index] = tuple(map(_without_gradient, earlier))
        return cls(graph, stage, wanted)

    def of(self, crossing: Crossing, choice: InterfaceChoice, source: str) -> tuple[Value, ...]:
        """Those that a head at this interface sees, in the order of the spec.

        Args:
            crossing: the interface.
            choice: what is asked for.
            source: what predicts; tails see targets only.

        Raises:
            SpecError: there is no such tensor.
            PartitionError: it is not one for each sample, or not at hand.
        """
        if not takes_context(source):
            return ()
        where = f"interfaces.{crossing.name}.head.context"
        return tuple(self._value(name, crossing.source, where) for name in choice.sees)

    def _value(self, name: str, stage: int, where: str) -> Value:
        op = tensor_named(name, self.graph, where)
        here = self.stage[op.name]
        used = any(op.name in other.inputs for other in self._in_stage(stage))
        sent = any(op.name == other.name for other in self.wanted.get(stage, ()))
        if stage not in here and not used and not sent:
            raise PartitionError(
                f"the head in stage{stage} is to see {name}, which stage{here[0]} makes",
                where=where,
                expected="an input of the model, or a module of this stage or of one before it",
            )
        assert op.value is not None  # `tensor_named` has looked
        return op.value

    def _in_stage(self, stage: int) -> list[Operation]:
        return [op for op in self.graph.operations if stage in self.stage[op.name]]


def takes_context(source: str) -> bool:
    """Whether what predicts sees tensors that the spec names: heads, and registered sources."""
    return source not in (*AWAITED, *TAILS, "none")


def _without_gradient(op: Operation) -> Operation:
    assert op.value is not None  # `tensor_named` has looked
    return replace(op, value=replace(op.value, differentiable=False))


def tensor_named(name: str, graph: Graph, where: str) -> Operation:
    """The operation whose result a name stands for.

    Args:
        name: an input of the model, an operation, or the dotted path of a module.
        graph: fine or coarse.
        where: the key of the spec, for messages.

    Raises:
        SpecError: there is none of that name.
        PartitionError: what it stands for is no tensor with one row for each sample.
    """
    op = graph.by_name.get(name)
    if op is None:
        position = last_positions(graph).get(name)
        if position is None:
            raise _unknown(name, graph, where)
        op = graph.operations[position]
    value = op.value
    if value is None or sum(batch_multiple(size) > 0 for size in value.shape) != 1:
        found = "not a tensor" if value is None else text(value.shape)
        raise PartitionError(
            f"a head cannot see {name}: it is {found}",
            where=where,
            expected="a tensor with the batch on one axis",
        )
    if value.dtype.startswith("complex"):
        raise PartitionError(f"a head cannot see {name}: it is {value.dtype}", where=where)
    return op


def _unknown(name: str, graph: Graph, where: str) -> Exception:
    for op in graph.operations:
        if op.kind == "module" and name.startswith(f"{op.module}."):
            return PartitionError(
                f"a head cannot see {name}, which is inside {op.module}",
                where=where,
                expected="an input of the model, or a module that a stage calls",
                hint=f"{op.module}, which is called as a whole",
            )
    return unknown_name(name, graph, where)
