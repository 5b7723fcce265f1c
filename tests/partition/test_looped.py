"""Pipelines that deal several stages out to each device: when they are planned, and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dnic.cost import Costs, DeviceProfile, cost_model
from dnic.errors import PartitionError
from dnic.graph.graph import Graph, Operation
from dnic.partition import Decision, DeviceGroup, PartitionRequest, Plan, decide, make_plan
from dnic.partition.alternative import Alternative
from dnic.partition.check import check_plan
from dnic.partition.cuts import cut_points
from dnic.partition.evaluate import stage_works
from dnic.partition.pipelined import chain as chain_works
from dnic.partition.plan import PlannedOptimizer, PlannedTraining
from dnic.partition.setting import Setting
from dnic.schedule import interleaved, zero_bubble
from tests.partition.planning import LABELS

Chain = Callable[..., Graph]
Make = Callable[..., Operation]
LAYERS = [10_000_000_000] * 16


def decided(graph: Graph, device: DeviceProfile, request: PartitionRequest) -> Decision:
    return decide(graph, cost_model(graph, device), request, LABELS)


def named(decision: Decision, name: str) -> Alternative:
    return next(a for a in decision.found if a.name == name)


def plan_of(graph: Graph, device: DeviceProfile, request: PartitionRequest) -> Plan:
    decision = decided(graph, device, request)
    training = PlannedTraining(batch_size=4, epochs=1, optimizer=PlannedOptimizer())
    placed = decision.chosen.placement
    costs = cost_model(graph, device)
    return decision.told(
        make_plan(graph, graph, costs, placed.cuts, request, training, LABELS, placed)
    )


@pytest.mark.parametrize(
    ("request_", "mode", "stages"),
    [
        (PartitionRequest(2, schedule="interleaved"), "interleaved", 4),
        (PartitionRequest(2, schedule="interleaved", stages=6), "interleaved", 6),
        (PartitionRequest(2, schedule="zerobubble", stages=4), "zerobubble", 4),
        (PartitionRequest(2, schedule="zerobubble", stages=2), "zerobubble", 2),
        (
            PartitionRequest(2, schedule="interleaved", cuts=("layers.2", "layers.5", "layers.11")),
            "interleaved",
            4,
        ),
    ],
)
def test_what_is_asked_for_is_planned(
    chain: Chain, device: DeviceProfile, request_: PartitionRequest, mode: str, stages: int
) -> None:
    plan = plan_of(chain(LAYERS), device, request_)
    assert plan.schedule.mode == mode
    assert plan.schedule.processes == (2 if stages > 2 else None)
    assert plan.schedule.microbatches in (2, 4)
    assert [stage.device for stage in plan.stages] == [k % 2 for k in range(stages)]
    assert {interface.gradient for interface in plan.interfaces} == {"exact"}
    if request_.cuts is not None:
        assert plan.cuts == request_.cuts


def test_stages_that_do_not_lie_on_the_devices_in_turns_are_refused(
    chain: Chain, device: DeviceProfile
) -> None:
    plan = plan_of(chain(LAYERS), device, PartitionRequest(2, schedule="interleaved"))
    for devices in ((0, 0, 1, 1), (0, 1, 0, 0), (0, 1, 0, 2)):
        moved = tuple(
            stage.model_copy(update={"device": number})
            for stage, number in zip(plan.stages, devices, strict=True)
        )
        with pytest.raises(PartitionError, match="stages are on device 0"):
            check_plan(plan.model_copy(update={"stages": moved}))


def test_numbers_of_stages_that_cannot_be_dealt_out() -> None:
    with pytest.raises(PartitionError, match="5 stages asked for 2 device") as caught:
        PartitionRequest(2, schedule="interleaved", stages=5)
    assert caught.value.expected == "4 stages, or another multiple of 2"
    with pytest.raises(PartitionError, match="2 stages asked"):
        PartitionRequest(2, schedule="interleaved", stages=2)
    with pytest.raises(PartitionError, match="3 stages asked") as caught:
        PartitionRequest(2, schedule="zerobubble", cuts=("a", "b"))
    assert caught.value.where == "partition.cuts"
    with pytest.raises(PartitionError, match="one device for each stage"):
        PartitionRequest(2, schedule="1f1b", stages=4)


def test_the_fastest_is_picked(
    operation: Make, graph_of: Callable[..., Graph], device: DeviceProfile
) -> None:
    """Weights that are too large to average, and nothing may be decoupled."""
    operations = [operation("x", kind="input", differentiable=False)]
    for i in range(16):
        operations.append(
            operation(
                f"layer{i}",
                (operations[-1].name,),
                parameters=(f"layer{i}.w",),
                parameter_bytes=400_000_000,
                flops=LAYERS[0],
            )
        )
    operations.append(operation("output", (operations[-1].name,), kind="output", shape=None))
    request = PartitionRequest(2, max_decoupled=0, overlap=1.0)
    decision = decided(graph_of(operations), device, request)
    assert decision.verdict.best == decision.chosen.name == "zero_bubble"
    assert decision.chosen.placement.chunks == 2
    assert decision.schedule.mode == "zerobubble"
    assert decision.schedule.processes == 2
    assert decision.chosen.outcome.devices == 2
    whole = replace(request, whole_backward="recomputed stages go back in one piece")
    decision = decided(graph_of(operations), device, whole)
    assert decision.chosen.name == "interleaved_1f1b"
    assert named(decision, "zero_bubble").unfit == whole.whole_backward


@pytest.mark.parametrize("overlap", [0.0, 1.0])
def test_predictions_come_from_the_simulator(
    chain: Chain, device: DeviceProfile, overlap: float
) -> None:
    graph = chain(LAYERS)
    request = PartitionRequest(2, overlap=overlap)
    decision = decided(graph, device, request)
    setting = Setting(graph, cut_points(graph), cost_model(graph, device), request, LABELS, 0.0)
    for name, schedule in (("interleaved_1f1b", interleaved), ("zero_bubble", zero_bubble)):
        found = named(decision, name)
        works, cuts = chain_works(setting, found.placement, 1 / found.microbatches)
        again = schedule(
            works,
            cuts,
            found.microbatches,
            found.placement.chunks,
            setting.batch,
            setting.machine(),
            posted_ahead=overlap > 0,
        )
        assert found.outcome == again
        assert found.outcome.how == "simulated"


def test_half_of_what_parameters_take_is_for_them(chain: Chain, device: DeviceProfile) -> None:
    graph = chain([1_000_000_000] * 2)
    costs: Costs = cost_model(graph, device)
    (work,) = stage_works(costs, ())
    trained = [us for us, n in zip(costs.backward_us, costs.gradient_bytes, strict=True) if n]
    assert trained and work.weight_us == pytest.approx(sum(trained) / 2)
    assert work.weight_at(0.5) == pytest.approx(
        work.backward_at(0.5) * work.weight_us / work.backward_us
    )


def test_memory_is_that_of_all_stages_on_a_device(chain: Chain, device: DeviceProfile) -> None:
    graph = chain(LAYERS)
    free = decided(graph, device, PartitionRequest(2, schedule="interleaved"))
    first, last = free.chosen.outcome.peak_memory_bytes
    fits = PartitionRequest(2, schedule="interleaved", memory_bytes=(first, last))
    assert not decided(graph, device, fits).chosen.unfit
    tight = PartitionRequest(2, schedule="interleaved", memory_bytes=(10 * first, last - 1))
    with pytest.raises(PartitionError, match=r"interleaved 1F1B .* cannot run: device 1 needs"):
        decided(graph, device, tight)


def test_devices_of_several_sorts_are_not_dealt_to(chain: Chain, device: DeviceProfile) -> None:
    groups = (DeviceGroup(1), DeviceGroup(1, speed=2.0))
    decision = decided(chain(LAYERS), device, PartitionRequest(2, groups=groups))
    assert not any(a.name == "interleaved_1f1b" for a in decision.found)
    assert named(decision, "zero_bubble").placement.chunks == 1


def test_a_skip_is_not_for_torch(
    operation: Make, graph_of: Callable[..., Graph], device: DeviceProfile
) -> None:
    names = [f"layer{i}" for i in range(8)]
    operations = [operation("x", kind="input", differentiable=False)]
    for i, name in enumerate(names):
        inputs = (operations[-1].name, *(["layer0"] if i == 7 else []))
        operations.append(
            operation(name, inputs, parameters=(f"{name}.w",), parameter_bytes=1000, flops=10**10)
        )
    operations.append(operation("output", ("layer7",), kind="output", shape=None))
    decision = decided(graph_of(operations), device, PartitionRequest(2))
    assert "skips stages" in named(decision, "interleaved_1f1b").unfit
    with pytest.raises(PartitionError, match=r"interleaved 1F1B .* cannot run: .* skips stages"):
        decided(graph_of(operations), device, PartitionRequest(2, schedule="interleaved"))


def test_a_model_that_cannot_be_cut_so_often(chain: Chain, device: DeviceProfile) -> None:
    with pytest.raises(PartitionError):
        decided(chain([10**9] * 2), device, PartitionRequest(4, schedule="interleaved"))
