"""Whole plans: edges, heads, windows and figures of small models, and any random model's plan."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnic.cost import Costs, DeviceProfile, Link, cost_model
from dnic.errors import PartitionError, SpecError
from dnic.graph.graph import Graph, Operation, Value
from dnic.partition import (
    DeviceGroup,
    InterfaceChoice,
    Links,
    PartitionRequest,
    Plan,
    PlannedTarget,
    check_plan,
    choose_cuts,
    make_plan,
    place,
    print_plan,
)
from dnic.partition.misfits import context_misfit, head_misfit
from tests.partition.planning import LABELS, TRAINING

Make = Callable[..., Operation]
Build = Callable[..., Graph]
Coarsen = Callable[[Graph, tuple[int, ...]], Graph]
EXACT = InterfaceChoice(gradient="exact")


@pytest.fixture
def skipping(operation: Make, graph_of: Build) -> Graph:
    """A mask computed first and used last, a fetched table used in two stages, three layers."""
    gigaflop = 1_000_000_000
    return graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("mask", ("x",), kind="function", differentiable=False, flops=0),
            operation("a", ("x",), parameters=("a.w",), parameter_bytes=1024, flops=gigaflop),
            operation("table", kind="attribute", module="", differentiable=False),
            operation("b", ("a", "table"), parameters=("b.w",), flops=gigaflop),
            operation("c", ("b", "mask", "table"), parameters=("c.w",), flops=gigaflop),
            operation("d", ("c", "a"), parameters=("d.w",), flops=gigaflop),
            operation("output", ("d",), kind="output", shape=None),
        ]
    )


@pytest.fixture
def planned(skipping: Graph, device: DeviceProfile) -> Plan:
    """Cut after a and after b."""
    return plan_of(skipping, skipping, device, PartitionRequest(3, cuts=("a", "b")))


def plan_of(
    fine: Graph,
    coarse: Graph,
    device: DeviceProfile,
    request: PartitionRequest,
    target: PlannedTarget | None = LABELS,
) -> Plan:
    costs = cost_model(fine, device)
    placed = place(fine, costs, request)
    return make_plan(coarse, fine, costs, placed.cuts, request, TRAINING, target, placed)


def test_tensors_go_straight_to_the_stage_that_uses_them(planned: Plan) -> None:
    found = [
        (f.name, f.source, f.to, f.after, [t.name for t in f.tensors]) for f in planned.interfaces
    ]
    assert found == [
        ("a", 0, 1, "a", ["a"]),
        ("a->stage2", 0, 2, "a", ["mask", "a"]),
        ("b", 1, 2, "b", ["b"]),
    ]
    assert [(s.inputs, s.outputs) for s in planned.stages] == [
        (("x",), ("mask", "a")),
        (("a",), ("b",)),
        (("mask", "a", "b"), ("output",)),
    ]
    assert [[o.name for o in s.operations] for s in planned.stages] == [
        ["x", "mask", "a"],
        ["table", "b"],
        ["table", "c", "d", "output"],
    ]
    assert planned.cuts == ("a", "b")
    assert [s.modules for s in planned.stages] == [("a",), ("table", "b"), ("table", "c", "d")]


def test_only_differentiable_tensors_need_a_gradient(
    operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("ids", ("x",), kind="function", differentiable=False),
            operation("a", ("ids",)),
            operation("output", ("a",), kind="output", shape=None),
        ]
    )
    plan = plan_of(graph, graph, device, PartitionRequest(2, cuts=("ids",)))
    (interface,) = plan.interfaces
    assert (interface.gradient, interface.head) == ("exact", None)
    assert interface.reason == "nothing differentiable crosses: no gradient is needed"
    assert plan.prediction.bottleneck == "stage1", "such an interface locks nothing"


def test_a_head_is_as_asked_or_as_wide_as_the_slack(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain([10_000_000_000] * 2)
    wide = plan_of(graph, graph, device, PartitionRequest(2))
    (interface,) = wide.interfaces
    head = interface.head
    assert head is not None
    assert (interface.gradient, head.hidden_layers, head.width) == ("synthetic", 1, None)
    assert head.parameters == 16 * 16 * 2 + 16 * 2 + 11 * 16
    assert head.forward_us > 0
    assert head.train_us > 2 * head.forward_us
    assert "1 differentiable tensor crosses" in interface.reason
    asked = InterfaceChoice(
        "synthetic", hidden_layers=2, width=4, context="none", lr=0.5, window=7, warmup_steps=9
    )
    plan = plan_of(graph, graph, device, PartitionRequest(2, choices={"layers.0": asked}))
    (interface,) = plan.interfaces
    assert interface.head is not None
    assert interface.head.model_dump(include={"hidden_layers", "width", "context", "lr"}) == {
        "hidden_layers": 2,
        "width": 4,
        "context": "none",
        "lr": 0.5,
    }
    assert interface.head.parameters == (16 * 4 + 4) + (4 * 4 + 4) + (4 * 16 + 16)
    assert (interface.window, interface.warmup_steps) == (7, 9)


def test_a_head_fills_what_its_stage_idles_and_no_more(
    operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    """Stage 0 has less to do: its head may be wider, up to where stage 0 would be the slowest."""
    slow = device.model_copy(update={"bytes_per_s": 1e9, "overhead_us": 20.0})
    for idle_us, width, bottleneck in ((0, 16, "stage0"), (20_000, 128, "stage1")):
        graph = graph_of(
            [
                operation("x", kind="input", differentiable=False),
                operation("a", ("x",), shape=("B", 1024), flops=10_000_000_000),
                operation("b", ("a",), flops=(10_000 + idle_us) * 1_000_000),
                operation("output", ("b",), kind="output", shape=None),
            ]
        )
        plan = plan_of(graph, graph, slow, PartitionRequest(2, cuts=("a",)))
        (interface,) = plan.interfaces
        assert interface.head is not None
        assert (interface.head.width, plan.prediction.bottleneck) == (width, bottleneck)


def test_exact_everywhere_is_predicted_as_no_gain(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain([15_000_000_000, 10_000_000_000])
    plan = plan_of(graph, graph, device, PartitionRequest(2, stages=2, default=EXACT))
    assert plan.interfaces[0].reason == "asked for: each step waits for the true gradient"
    assert plan.interfaces[0].window == 1
    assert plan.prediction.bottleneck == "stage0 + stage1"
    assert plan.prediction.speedup < 1
    # The first layer needs no gradient of its input: 2 * 15 beside 3 * 10.
    decoupled = plan_of(graph, graph, device, PartitionRequest(2))
    assert 1.8 < decoupled.prediction.speedup < 2
    assert decoupled.prediction.bottleneck in ("stage0", "stage1")


def test_one_stage_is_backprop(chain: Callable[..., Graph], device: DeviceProfile) -> None:
    graph = chain([10_000_000] * 3)
    plan = plan_of(graph, graph, device, PartitionRequest(1), target=None)
    assert (len(plan.stages), plan.interfaces) == (1, ())
    assert plan.prediction.step_us == plan.prediction.backprop_us
    assert (plan.prediction.speedup, plan.prediction.bottleneck) == (1.0, "stage0")
    assert plan.stages[0].outputs == ("output",)


def test_a_far_link_opens_the_window(chain: Callable[..., Graph], device: DeviceProfile) -> None:
    graph = chain([10_000_000_000] * 2)
    near = plan_of(graph, graph, device, PartitionRequest(2))
    far_link = Link(name="far", bandwidth_bytes_per_s=1e9, latency_us=100_000.0)
    by_default = PartitionRequest(2, links=Links(default=far_link))
    apart = (DeviceGroup(1), DeviceGroup(1))
    by_pair = PartitionRequest(2, groups=apart, links=Links(between={(1, 0): far_link}))
    for request in (by_default, by_pair):
        far = plan_of(graph, graph, device, request)
        assert near.interfaces[0].window == 2
        assert far.interfaces[0].window > 4
        assert far.interfaces[0].transfer_us == pytest.approx(100_000 + 256e-3)
        assert far.prediction.step_us == pytest.approx(near.prediction.step_us)


@pytest.mark.parametrize(
    ("target", "shape", "fits"),
    [
        (None, ("B", 16), False),
        (LABELS, ("B", 16), True),
        (LABELS, ("8*B", 16), True),
        (LABELS, (1, 8, 16), False),
        (PlannedTarget(shape=("B", 8), dtype="int64", classes=3), ("B", 9, 16), True),
        (PlannedTarget(shape=("B", 3, 8, 8), dtype="float32"), ("B", 16), True),
        (PlannedTarget(shape=("B", 0), dtype="float32"), ("B", 16), False),
        (PlannedTarget(shape=(), dtype="float32"), ("B", 16), False),
        (PlannedTarget(shape=(8, "B"), dtype="int64"), ("B", 16), False),
        (PlannedTarget(shape=("B",), dtype="complex64"), ("B", 16), False),
    ],
)
def test_which_targets_a_head_can_see(
    target: PlannedTarget | None, shape: tuple[int | str, ...], fits: bool
) -> None:
    assert (context_misfit(target, [Value("h", shape, "float32", 0, True)]) == "") is fits


@pytest.mark.parametrize(
    ("shape", "dtype", "fits"),
    [
        (("B", 16), "float32", True),
        (("B", 4, 16), "bfloat16", True),
        ((1, 8, 16), "float32", True),
        ((4, "B", 16), "float32", True),
        (("6*B", 16), "float32", True),
        ((), "float32", True),
        (("B", "B"), "float32", False),
        (("B", 16), "complex64", False),
    ],
)
def test_which_tensors_can_have_a_head(
    shape: tuple[int | str, ...], dtype: str, fits: bool
) -> None:
    assert (head_misfit([Value("h", shape, dtype, 0, True)]) == "") is fits


def test_where_no_head_can_be_the_gradient_is_awaited(
    operation: Make, graph_of: Build, device: DeviceProfile
) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("a", ("x",), shape=("B", "B", 16)),
            operation("b", ("a",)),
            operation("output", ("b",), kind="output", shape=None),
        ]
    )
    (interface,) = plan_of(graph, graph, device, PartitionRequest(2, cuts=("a",))).interfaces
    assert (interface.gradient, interface.head, interface.window) == ("exact", None, 1)
    assert interface.reason == (
        "no head for a [B, B, 16], whose batch is on several axes: "
        "each step waits for the true gradient"
    )
    asked = PartitionRequest(2, cuts=("a",), default=InterfaceChoice(gradient="synthetic"))
    with pytest.raises(PartitionError, match="no head for a") as caught:
        plan_of(graph, graph, device, asked)
    assert caught.value.where == "interfaces.a.gradient"


def test_context_falls_back_with_a_reason(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain([10_000_000_000] * 2)
    nothing = PlannedTarget(shape=("B", 0), dtype="float32")
    for target, reason in (
        (None, "no target context: there are no training data to take targets from"),
        (nothing, "no target context: targets [B, 0] are not one for each sample; 1 different"),
    ):
        (interface,) = plan_of(graph, graph, device, PartitionRequest(2), target).interfaces
        assert interface.head is not None
        assert interface.head.context == "none"
        assert interface.reason.startswith(reason)


def test_no_remark_where_no_context_was_asked_for(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    graph = chain([10_000_000_000] * 2)
    request = PartitionRequest(2, default=InterfaceChoice(context="none"))
    (interface,) = plan_of(graph, graph, device, request, None).interfaces
    assert interface.reason.startswith("1 differentiable tensor crosses")


def test_choices_that_name_no_interface(chain: Callable[..., Graph], device: DeviceProfile) -> None:
    graph = chain([10_000_000_000] * 4)
    request = PartitionRequest(2, choices={"layers.2": EXACT})
    with pytest.raises(SpecError, match=r"no interface 'layers\.2'") as caught:
        plan_of(graph, graph, device, request)
    assert caught.value.where == "interfaces.layers.2"
    assert caught.value.expected == "one of layers.1"
    with pytest.raises(SpecError, match="no interface 'x->stage3'"):
        plan_of(graph, graph, device, PartitionRequest(2, choices={"x->stage3": EXACT}))


def test_a_choice_may_name_the_operation_of_a_cut(
    skipping: Graph, chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    request = PartitionRequest(3, cuts=("a", "b"), choices={"a->stage2": EXACT, "b": EXACT})
    plan = plan_of(skipping, skipping, device, request)
    assert [f.gradient for f in plan.interfaces] == ["synthetic", "exact", "exact"]
    graph = chain([10_000_000_000] * 4)
    request = PartitionRequest(2, cuts=("layers.1",), choices={"layers_1": EXACT})
    (interface,) = plan_of(graph, graph, device, request).interfaces
    assert (interface.name, interface.gradient) == ("layers.1", "exact")


def test_stage_figures_add_up(planned: Plan, skipping: Graph, device: DeviceProfile) -> None:
    costs = cost_model(skipping, device)
    assert sum(s.forward_us for s in planned.stages) == pytest.approx(sum(costs.forward_us))
    assert sum(s.backward_us for s in planned.stages) == pytest.approx(sum(costs.backward_us))
    assert sum(s.forward_flops for s in planned.stages) == 4_000_000_000
    working = [f + b for f, b in zip(costs.forward_us, costs.backward_us, strict=True)]
    for operation in (op for s in planned.stages for op in s.operations):
        share = working[skipping.position[operation.name]] / sum(working)
        assert operation.time_share == pytest.approx(share)
        assert operation.parameters == (256 if operation.name == "a" else 0)
    assert [s.parameters for s in planned.stages] == [256, 0, 0]
    assert planned.model.parameters == 256
    assert planned.prediction.backprop_us == pytest.approx(sum(costs.total_us))
    # Parameter, gradient, two moments and one activation; three messages of 256 bytes in flight
    # to stage 1, three of 512 to stage 2; two heads of width 16 with Adam.
    heads = sum(f.head.parameters for f in planned.interfaces if f.head and f.source == 0)
    assert planned.stages[0].memory_bytes == 4 * 1024 + 256 + 3 * 768 + 16 * heads


def test_time_of_uncovered_operations_is_not_lost(skipping: Graph, device: DeviceProfile) -> None:
    coarse = replace(
        skipping,
        operations=tuple(
            replace(op, span=(5, 5)) if op.name == "c" else op for op in skipping.operations
        ),
    )
    plan = plan_of(skipping, coarse, device, PartitionRequest(3, cuts=("a", "b")))
    shares = {op.name: op.time_share for s in plan.stages for op in s.operations}
    assert shares["c"] == 0
    assert shares["d"] == pytest.approx(2 * shares["b"], rel=1e-3)


def test_a_cut_inside_a_coarse_operation(
    chain: Callable[..., Graph], coarse_of: Coarsen, device: DeviceProfile
) -> None:
    fine = chain([1_000_000] * 4)
    coarse = coarse_of(fine, ())
    assert [op.name for op in coarse.operations] == ["x", "layers_3", "output"]
    request = PartitionRequest(2, cuts=("layers.1",))
    with pytest.raises(PartitionError, match="a cut falls inside layers_3"):
        plan_of(fine, coarse, device, request)


def test_an_operation_that_uses_a_later_result(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    fine = chain([1_000_000] * 4)
    operations = list(fine.operations)
    operations[1], operations[4] = (
        replace(operations[1], span=(4, 5)),
        replace(operations[4], span=(1, 2)),
    )
    coarse = replace(fine, operations=tuple(operations))
    with pytest.raises(PartitionError, match="layers_1 in stage0 uses layers_0, which"):
        make_plan(
            coarse, fine, cost_model(fine, device), (3,), PartitionRequest(2), TRAINING, LABELS
        )


def test_what_is_no_tensor_cannot_be_sent(
    chain: Callable[..., Graph], device: DeviceProfile
) -> None:
    fine = chain([1_000_000] * 4)
    operations = list(fine.operations)
    operations[2] = replace(operations[2], value=None)
    coarse = replace(fine, operations=tuple(operations))
    with pytest.raises(PartitionError, match="layers_1 would go from stage0 to stage1"):
        make_plan(
            coarse, fine, cost_model(fine, device), (3,), PartitionRequest(2), TRAINING, LABELS
        )


def test_a_plan_survives_its_own_yaml_form(planned: Plan) -> None:
    dumped = planned.model_dump(mode="json", by_alias=True)
    assert Plan.model_validate(dumped) == planned


def test_the_checker_attaches_the_plan(planned: Plan) -> None:
    check_plan(planned)
    # A person may turn a head off by this one word.
    check_plan(edited(planned, "interfaces", 0, gradient="exact"))
    swapped = planned.model_copy(update={"interfaces": planned.interfaces[1:]})
    with pytest.raises(PartitionError) as caught:
        check_plan(swapped)
    assert "stage1 takes a, which arrives 0 times" in str(caught.value)
    assert print_plan(swapped) in str(caught.value)


def edited(planned: Plan, part: str, index: int, **changes: object) -> Plan:
    parts = list(getattr(planned, part))
    parts[index] = parts[index].model_copy(update=changes)
    return planned.model_copy(update={part: tuple(parts)})


@pytest.mark.parametrize(
    ("part", "index", "changes", "message"),
    [
        ("stages", 0, {"time_share": 0.9}, "the stages' shares of time add up to"),
        ("stages", 0, {"operations": ()}, "stage0 returns mask, which it does not make"),
        ("stages", 1, {"device": 2}, "2 stages are on device 2"),
        ("stages", 1, {"name": "stage2"}, "stage 1 is called stage2"),
        ("stages", 1, {"inputs": ()}, "b in stage1 uses a, which is not there"),
        ("stages", 0, {"outputs": ("a",)}, "carries mask, which stage0 does not return"),
        ("stages", 0, {"outputs": ("mask", "a", "x")}, "stage0 returns x, which nobody takes"),
        ("stages", 1, {"outputs": ("b", "c")}, "stage1 returns c, which it does not make"),
        ("stages", 2, {"outputs": ("d",)}, "the last stage returns d"),
        ("stages", 2, {"inputs": ("mask", "a", "b", "z")}, "takes z, which arrives 0 times"),
        ("interfaces", 0, {"source": 2}, "interface a goes from stage2 to stage1"),
        ("interfaces", 0, {"to": 3}, "interface a goes from stage0 to stage3"),
        ("interfaces", 0, {"tensors": ()}, "interface a carries nothing"),
        ("interfaces", 0, {"head": None}, "interface a is synthetic and has no head"),
        ("interfaces", 2, {"name": "a"}, "2 interfaces are called a"),
    ],
)
def test_the_checker_sees(
    planned: Plan, part: str, index: int, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(PartitionError, match=message):
        check_plan(edited(planned, part, index, **changes))


def test_the_checker_sees_an_operation_in_two_stages(planned: Plan) -> None:
    operations = planned.stages[1].operations
    b = next(op for op in operations if op.name == "b")
    twice = edited(planned, "stages", 2, operations=(b, *planned.stages[2].operations))
    with pytest.raises(PartitionError, match="b is in stage1 and in stage2"):
        check_plan(twice)
    repeated = edited(planned, "stages", 1, operations=(*operations, b))
    with pytest.raises(PartitionError, match="b stands 2 times in stage1"):
        check_plan(repeated)
    idle = b.model_copy(update={"time_share": 0.0})
    thin = tuple(idle if op.name == "b" else op for op in operations)
    with pytest.raises(PartitionError, match="the operations' shares of time add up to"):
        check_plan(edited(planned, "stages", 1, operations=thin))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(seed=st.integers(0, 10_000), blocks=st.integers(1, 8), devices=st.integers(1, 4))
def test_any_model_gets_a_plan_that_holds(
    seed: int,
    blocks: int,
    devices: int,
    random_graph: Callable[[int, int], Graph],
    coarse_of: Coarsen,
    device: DeviceProfile,
) -> None:
    fine = random_graph(seed, blocks)
    costs: Costs = cost_model(fine, device)
    costs.check(fine)
    request = PartitionRequest(devices)
    cuts = choose_cuts(fine, costs, request)
    coarse = coarse_of(fine, cuts)
    plan = make_plan(coarse, fine, costs, cuts, request, TRAINING, LABELS)
    check_plan(plan)
    assert len(plan.stages) == len(cuts) + 1 <= devices
    assert {o.name for s in plan.stages for o in s.operations} == set(coarse.by_name)
    assert plan.prediction.step_us > 0
