"""Parameters that several stages use: who owns them, who holds copies, and what that costs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dnic.cost import DeviceProfile, cost_model
from dnic.errors import PartitionError
from dnic.graph.graph import Graph, Operation, Weight
from dnic.partition import (
    InterfaceChoice,
    PartitionRequest,
    Plan,
    choose_cuts,
    make_plan,
    place,
)
from tests.partition.planning import TRAINING

Make = Callable[..., Operation]
Build = Callable[..., Graph]
EXACT = InterfaceChoice(gradient="exact")
TIED_BYTES = 4_000_000


def plan_of(graph: Graph, device: DeviceProfile, request: PartitionRequest) -> Plan:
    costs = cost_model(graph, device)
    return make_plan(
        graph, graph, costs, choose_cuts(graph, costs, request), request, TRAINING, None
    )


@pytest.fixture
def tied(operation: Make, graph_of: Build) -> Callable[..., Graph]:
    """An embedding whose weight the last layer fetches, and a layer between that is called twice.

    `trained` says whether the embedding's weight is; `nbytes` is its size.
    """

    def build(*, trained: bool = True, nbytes: int = TIED_BYTES, flops: int = 10**9) -> Graph:
        return graph_of(
            [
                operation("x", kind="input", differentiable=False),
                operation(
                    "embed", ("x",), parameters=("embed.w",), parameter_bytes=nbytes, flops=0
                ),
                operation("a", ("embed",), parameters=("a.w",), parameter_bytes=100, flops=flops),
                operation("b", ("a",), parameters=("b.w",), parameter_bytes=100, flops=flops),
                operation("a_1", ("b",), module="a", parameters=("a.w",), flops=flops),
                operation("head_w", kind="attribute", module="head", parameters=("embed.w",)),
                operation("logits", ("a_1", "head_w"), kind="function", flops=flops),
                operation("output", ("logits",), kind="output", shape=None),
            ],
            weights={
                "embed.w": Weight("embed.w", ("head.w",), nbytes, trained=trained),
                "a.w": Weight("a.w", (), 100, trained=True),
            },
        )

    return build


def test_the_first_stage_that_uses_a_parameter_owns_it(
    tied: Callable[..., Graph], device: DeviceProfile
) -> None:
    plan = plan_of(tied(), device, PartitionRequest(3, cuts=("a", "b")))
    assert [(s.name, s.aliases, s.owner, s.holders, s.nbytes) for s in plan.shared] == [
        ("embed.w", ("head.w",), 0, (2,), TIED_BYTES),
        ("a.w", (), 0, (2,), 100),
    ]


def test_every_later_stage_that_uses_it_holds_a_copy(
    operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    operations = [operation("x", kind="input", differentiable=False)]
    for i in range(4):
        before = operations[-1].name
        operations.append(
            operation(f"layer_{i}", (before,), module="layer", parameters=("layer.w",), flops=10**9)
        )
    operations.append(operation("output", (operations[-1].name,), kind="output", shape=None))
    plan = plan_of(graph_of(operations), device, PartitionRequest(4, stages=4))
    assert [(s.name, s.owner, s.holders) for s in plan.shared] == [("layer.w", 0, (1, 2, 3))]


def test_a_parameter_within_one_stage_is_not_shared(
    tied: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = tied()
    assert plan_of(graph, device, PartitionRequest(1)).shared == ()
    (only,) = plan_of(graph, device, PartitionRequest(2, cuts=("embed",))).shared
    assert only.name == "embed.w", "both calls of `a` are behind the cut"


def test_a_frozen_parameter_is_not_shared(
    tied: Callable[..., Graph], device: DeviceProfile
) -> None:
    plan = plan_of(tied(trained=False), device, PartitionRequest(2, cuts=("b",)))
    assert [s.name for s in plan.shared] == ["a.w"]


def test_its_bytes_move_the_cut(operation: Make, graph_of: Build, device: DeviceProfile) -> None:
    """The middle lies between two uses of one layer: worth it only while the layer is small."""

    def cuts(nbytes: int) -> tuple[int, ...]:
        operations = [operation("x", kind="input", differentiable=False)]
        modules = ("first", "twice", "between", "twice", "last")
        for i, module in enumerate(modules):
            name = "w" if module == "twice" else f"{module}.w"
            before = operations[-1].name
            operations.append(
                operation(
                    f"{module}_{i}", (before,), module=module, parameters=(name,), flops=10**10
                )
            )
        operations.append(operation("output", (operations[-1].name,), kind="output", shape=None))
        weights = {"w": Weight("w", (), nbytes, trained=True)}
        graph = graph_of(operations, weights=weights)
        request = PartitionRequest(2, stages=2)
        return place(graph, cost_model(graph, device), request, "pipeline").cuts

    assert cuts(1000) in {(3,), (4,)}
    assert cuts(1_000_000_000) in {(2,), (5,)}


def test_the_link_and_the_messages_are_predicted(
    tied: Callable[..., Graph], device: DeviceProfile
) -> None:
    """1 GB over a link of 1 GB/s, there and back, at a window of 2: a step of a second or more."""
    request = PartitionRequest(2, cuts=("b",))
    small = plan_of(tied(nbytes=1000), device, request)
    large = plan_of(tied(nbytes=10**9), device, request)
    frozen = plan_of(tied(nbytes=10**9, trained=False), device, request)
    assert large.prediction.bottleneck == "parameter embed.w: window"
    assert large.prediction.step_us >= 1e6
    assert "parameter" not in small.prediction.bottleneck
    assert frozen.prediction.step_us < large.prediction.step_us / 2


def test_a_holder_has_memory_for_the_copy_its_gradient_and_both_on_their_way(
    tied: Callable[..., Graph], device: DeviceProfile
) -> None:
    request = PartitionRequest(2, cuts=("b",))
    frozen, shared = (plan_of(tied(trained=trained), device, request) for trained in (False, True))
    owner, holder = (
        b.memory_bytes - a.memory_bytes for a, b in zip(frozen.stages, shared.stages, strict=True)
    )
    assert (owner, holder) == (0, 4 * TIED_BYTES)


def test_a_copy_that_does_not_fit_moves_the_cut(
    tied: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = tied()
    free = PartitionRequest(2, stages=2, default=EXACT, cuts=("b",))
    with pytest.raises(PartitionError, match=r"stage \d needs"):
        plan_of(graph, device, replace(free, memory_bytes=(1 << 40, 2 * TIED_BYTES)))
    plan_of(graph, device, replace(free, memory_bytes=(1 << 40, 6 * TIED_BYTES)))
