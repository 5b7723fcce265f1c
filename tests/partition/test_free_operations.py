"""Operations that follow from constants: computed by every stage that uses them, never sent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dnic.cost import DeviceProfile, cost_model
from dnic.errors import PartitionError
from dnic.graph.graph import Graph, Operation
from dnic.partition import (
    PartitionRequest,
    Plan,
    check_plan,
    choose_cuts,
    cut_points,
    make_plan,
)
from tests.partition.planning import TRAINING

Make = Callable[..., Operation]
Build = Callable[..., Graph]


@pytest.fixture
def masked(operation: Make, graph_of: Build) -> Graph:
    """A causal mask from a range from nothing, which every one of four layers takes.

    `positions` is for the first layer only; `pair` is no tensor.
    """

    def constant(name: str, inputs: tuple[str, ...] = (), **rest: object) -> Operation:
        made = operation(name, inputs, kind="function", differentiable=False, flops=0, **rest)
        return replace(made, free=True)

    return graph_of(
        [
            operation("x", kind="input", differentiable=False),
            constant("positions", shape=(16,)),
            operation("embed", ("x", "positions"), flops=10**9),
            constant("pair", ("positions",), shape=None),
            constant("mask", ("pair",), shape=(16, 16)),
            operation("a", ("embed", "mask"), flops=10**9),
            operation("b", ("a", "mask"), flops=10**9),
            operation("c", ("b",), flops=10**9),
            operation("d", ("c", "mask"), flops=10**9),
            operation("output", ("d",), kind="output", shape=None),
        ]
    )


@pytest.fixture
def planned(masked: Graph, device: DeviceProfile) -> Plan:
    """Cut after a, b and c."""
    costs = cost_model(masked, device)
    request = PartitionRequest(4, cuts=("a", "b", "c"))
    cuts = choose_cuts(masked, costs, request)
    return make_plan(masked, masked, costs, cuts, request, TRAINING, None)


def test_they_do_not_cross_and_no_cut_lies_right_behind_one(masked: Graph) -> None:
    table = cut_points(masked)
    crossing = {p.after: [v.name for v in p.tensors] for p in table.points.values()}
    assert crossing == {"embed": ["embed"], "a": ["a"], "b": ["b"], "c": ["c"]}
    for name in ("positions", "pair", "mask"):
        assert "computes nothing from the inputs" in table.refused[masked.position[name] + 1]


def test_every_stage_computes_those_that_it_uses(planned: Plan) -> None:
    assert [[op.name for op in stage.operations if op.repeated] for stage in planned.stages] == [
        ["positions", "pair", "mask"],
        ["positions", "pair", "mask"],
        [],
        ["positions", "pair", "mask"],
    ]
    sent = [t.name for interface in planned.interfaces for t in interface.tensors]
    assert sent == ["a", "b", "c"]


def test_time_is_counted_once(planned: Plan) -> None:
    shares = [op.time_share for stage in planned.stages for op in stage.operations]
    assert sum(shares) == pytest.approx(1)
    repeated = [op for stage in planned.stages[1:] for op in stage.operations if op.repeated]
    assert repeated and all(op.time_share == 0 for op in repeated)


def test_one_that_nobody_uses_stays_where_it_ran(
    masked: Graph, operation: Make, device: DeviceProfile
) -> None:
    operations = list(masked.operations)
    at = masked.position["c"]
    unused = replace(operation("unused", kind="function", differentiable=False), free=True)
    operations[at:at] = [unused]
    graph = replace(
        masked,
        operations=tuple(replace(op, span=(i, i + 1)) for i, op in enumerate(operations)),
    )
    costs = cost_model(graph, device)
    request = PartitionRequest(2, cuts=("b",))
    plan = make_plan(
        graph, graph, costs, choose_cuts(graph, costs, request), request, TRAINING, None
    )
    assert [["unused" in [op.name for op in s.operations]] for s in plan.stages] == [
        [False],
        [True],
    ]


def test_the_checker_takes_only_repeated_ones_in_two_stages(planned: Plan) -> None:
    check_plan(planned)
    stages = [
        stage.model_copy(
            update={
                "operations": tuple(
                    op.model_copy(update={"repeated": False}) for op in stage.operations
                )
            }
        )
        for stage in planned.stages
    ]
    with pytest.raises(PartitionError, match="positions is in stage0 and in stage1"):
        check_plan(planned.model_copy(update={"stages": tuple(stages)}))


def test_the_checker_wants_all_that_a_repeated_one_takes(planned: Plan) -> None:
    first, second, *rest = planned.stages
    operations = tuple(op for op in second.operations if op.name != "pair")
    broken = second.model_copy(update={"operations": operations})
    with pytest.raises(PartitionError, match="mask in stage1 uses pair, which is not there"):
        check_plan(planned.model_copy(update={"stages": (first, broken, *rest)}))
