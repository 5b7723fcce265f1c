"""From graphs to cuts: balance, tidiness, and every constraint of a request."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dnic.cost import DeviceProfile, cost_model
from dnic.errors import PartitionError, SpecError
from dnic.graph.graph import Graph, Operation
from dnic.partition import InterfaceChoice, PartitionRequest, choose_cuts, place

Make = Callable[..., Operation]
Build = Callable[..., Graph]
EXACT = InterfaceChoice(gradient="exact")


def cuts_of(graph: Graph, device: DeviceProfile, request: PartitionRequest) -> tuple[int, ...]:
    """Cuts of decoupled stages; of a pipeline's where no gradient is predicted by default."""
    purpose = "pipeline" if request.default == EXACT else "decoupled"
    return place(graph, cost_model(graph, device), request, purpose).cuts


def test_equal_layers_are_cut_in_the_middle(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain([1_000_000_000] * 8)
    assert cuts_of(graph, device, PartitionRequest(2)) == (5,)
    assert cuts_of(graph, device, PartitionRequest(4)) == (3, 5, 7)
    assert cuts_of(graph, device, PartitionRequest(1)) == ()


def test_one_stage_where_no_cut_pays(chain: Callable[..., Graph], device: DeviceProfile) -> None:
    """A head costs dozens of overheads of 1 us: more than these layers take."""
    graph = chain([1000] * 4)
    assert cuts_of(graph, device, PartitionRequest(4)) == ()
    assert cuts_of(graph, device, PartitionRequest(2, default=EXACT)) == (3,)
    assert cuts_of(graph, device, PartitionRequest(4, stages=2)) != ()


@pytest.mark.parametrize(
    ("megaflops", "at_boundary"),
    [(55, True), (70, False)],
    ids=["2% longer at the boundary", "9% longer at the boundary"],
)
def test_cuts_between_residual_blocks_within_the_tolerance(
    megaflops: int, at_boundary: bool, operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    """The second of four blocks is the largest, so that the exact middle lies inside it."""
    operations = [operation("x", kind="input", differentiable=False)]
    for b in range(4):
        source = operations[-1].name
        for k in range(20):
            flops = (megaflops if b == 1 else 50) * 10_000_000
            name, before = f"blocks_{b}_{k}", operations[-1].name
            operations.append(operation(name, (before,), module=f"blocks.{b}.{k}", flops=flops))
        ends = (source, operations[-1].name)
        operations.append(
            operation(f"blocks_{b}_add", ends, kind="function", module=f"blocks.{b}", flops=0)
        )
    operations.append(operation("output", (operations[-1].name,), kind="output", shape=None))
    graph = graph_of(operations)
    (gap,) = cuts_of(graph, device, PartitionRequest(2))
    assert (graph.operations[gap - 1].name == "blocks_1_add") is at_boundary
    assert len(graph.crossing(gap)) == (1 if at_boundary else 2)


def test_a_module_boundary_wins_among_equals(
    operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    """3% slower than behind `body.b.0`, but no module is opened."""
    operations = [operation("x", kind="input", differentiable=False)]
    for path, flops in (
        ("body.a.0", 50),
        ("body.a.1", 45),
        ("body.b.0", 4),
        ("body.b.1", 48),
        ("body.b.2", 50),
    ):
        operations.append(
            operation(
                path.replace(".", "_"),
                (operations[-1].name,),
                module=path,
                flops=flops * 10_000_000,
            )
        )
    operations.append(operation("output", (operations[-1].name,), kind="output", shape=None))
    graph = graph_of(operations)
    assert cuts_of(graph, device, PartitionRequest(2, default=EXACT)) == (3,)


def test_one_large_tensor_is_better_than_two_small_ones(
    operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    """Behind `a` 5% longer and 1024 bytes in one tensor; behind `c` 512 bytes in two."""
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("a", ("x",), shape=("B", 64), flops=950_000_000),
            operation("b", ("a",), flops=30_000_000),
            operation("c", ("a",), flops=30_000_000),
            operation("d", ("b", "c"), flops=1_000_000_000),
            operation("output", ("d",), kind="output", shape=None),
        ]
    )
    assert cuts_of(graph, device, PartitionRequest(2, default=EXACT)) == (2,)


def test_cuts_without_a_possible_head_are_the_last_resort(
    operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    """In the middle the batch is on two axes: no head can predict a gradient there."""
    operations = [operation("x", kind="input", differentiable=False)]
    for i, shape in enumerate((("B", 16), ("B", "B", 16), ("B", "B", 16), ("B", "B", 16))):
        flops = (100, 900, 50, 950)[i] * 1_000_000
        operations.append(operation(f"layer{i}", (operations[-1].name,), shape=shape, flops=flops))
    operations.append(operation("output", (operations[-1].name,), kind="output", shape=None))
    graph = graph_of(operations)
    assert cuts_of(graph, device, PartitionRequest(2)) == ()
    assert cuts_of(graph, device, PartitionRequest(2, default=EXACT)) == (3,)
    # Waiting adds up: 1000 + 1000 in the middle, at most 1900 behind layer0.
    assert cuts_of(graph, device, PartitionRequest(2, stages=2)) == (2,)
    assert cuts_of(graph, device, PartitionRequest(3, cuts=("layer1",))) == (3,)
    assert cuts_of(graph, device, PartitionRequest(3, stages=3))[0] == 2


def test_a_possible_head_is_worth_more_than_fewer_bytes(
    operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    operations = [operation("x", kind="input", differentiable=False)]
    for i, shape in enumerate((("B", 64), ("B", "B", 8), ("B", 16))):
        flops = (5000, 200, 4800)[i] * 1_000_000
        operations.append(operation(f"layer{i}", (operations[-1].name,), shape=shape, flops=flops))
    operations.append(operation("output", (operations[-1].name,), kind="output", shape=None))
    graph = graph_of(operations)
    assert cuts_of(graph, device, PartitionRequest(2, stages=2)) == (2,)
    assert cuts_of(graph, device, PartitionRequest(2, stages=2, default=EXACT)) == (3,)


def test_named_cuts_are_the_cuts(chain: Callable[..., Graph], device: DeviceProfile) -> None:
    graph = chain([1_000_000_000] * 8)
    request = PartitionRequest(4, cuts=("layers.0", "layers.6"))
    assert cuts_of(graph, device, request) == (2, 8)
    assert cuts_of(graph, device, PartitionRequest(4, cuts=())) == ()
    more = PartitionRequest(4, stages=3, cuts=("layers.0",))
    assert cuts_of(graph, device, more) == (2, 5)


def test_groups_stay_together(chain: Callable[..., Graph], device: DeviceProfile) -> None:
    graph = chain([1_000_000_000] * 8)
    request = PartitionRequest(2, keep_together=(("layers.2", "layers.5"),))
    assert cuts_of(graph, device, request) in {(3,), (7,)}
    with pytest.raises(PartitionError, match="inside a group to keep together"):
        cuts_of(
            graph,
            device,
            PartitionRequest(2, cuts=("layers.3",), keep_together=(("layers.2", "layers.5"),)),
        )


def test_memory_moves_the_cut(chain: Callable[..., Graph], device: DeviceProfile) -> None:
    graph = chain([1_000_000_000] * 8)
    costs = cost_model(graph, device)
    assert sum(costs.memory_bytes) == 8 * (4 * 1024 + 4 * 4 * 16)
    free = cuts_of(graph, device, PartitionRequest(2, default=EXACT))
    # Room on one device for three layers and the two messages that a cut keeps at least.
    room = 3 * (4 * 1024 + 256) + 2 * 256
    tight = PartitionRequest(2, default=EXACT, memory_bytes=(room, 1 << 40))
    assert free == (5,)
    # Either stage may be on the small device.
    assert cuts_of(graph, device, tight) in {(4,), (6,)}
    # A byte less, and the messages no longer fit beside three layers.
    tighter = replace(tight, memory_bytes=(room - 1, 1 << 40))
    assert cuts_of(graph, device, tighter) in {(3,), (7,)}
    with pytest.raises(PartitionError, match=r"stage \d needs .* KiB, device \d has 1 KiB"):
        choose_cuts(graph, costs, PartitionRequest(2, memory_bytes=1024))


def test_a_wide_head_moves_the_cut_to_the_narrow_place(
    operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    """Full-width heads on 4096 features cost more than the imbalance of cutting at 16."""
    operations = [operation("x", kind="input", differentiable=False)]
    for i, (width, flops) in enumerate(((16, 90), (4096, 40), (4096, 40), (16, 90))):
        operations.append(
            operation(
                f"layer{i}", (operations[-1].name,), shape=("B", width), flops=flops * 1_000_000
            )
        )
    operations.append(operation("output", (operations[-1].name,), kind="output", shape=None))
    graph = graph_of(operations)
    full = InterfaceChoice(hidden_layers=0, width=None)
    assert cuts_of(graph, device, PartitionRequest(2, stages=2, default=full)) == (2,)
    assert cuts_of(graph, device, PartitionRequest(2, stages=2, default=EXACT)) == (3,)


def test_requests_that_cannot_be(chain: Callable[..., Graph], device: DeviceProfile) -> None:
    graph = chain([1_000_000] * 8)
    with pytest.raises(PartitionError, match="12 stages asked, only 7 cut points"):
        cuts_of(graph, device, PartitionRequest(12, stages=12))
    with pytest.raises(PartitionError, match="4 stages asked, only 2 devices"):
        cuts_of(graph, device, PartitionRequest(2, cuts=("layers.0", "layers.1", "layers.2")))
    with pytest.raises(SpecError, match="no module or operation 'layer3'") as caught:
        cuts_of(graph, device, PartitionRequest(2, cuts=("layer3",)))
    assert "layers.3" in (caught.value.hint or "")
    with pytest.raises(SpecError, match="'layer3'"):
        cuts_of(graph, device, PartitionRequest(2, choices={"layer3": EXACT}))
    for make in (
        lambda: PartitionRequest(0),
        lambda: PartitionRequest(2, stages=3),
        lambda: PartitionRequest(2, stages=0),
        lambda: PartitionRequest(2, memory_bytes=(1,)),
    ):
        with pytest.raises(PartitionError):
            make()
