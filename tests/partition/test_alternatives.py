"""Every way to train a model: which are listed, what limits them, which one is picked and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dnic.cost import DeviceProfile, Link, cost_model
from dnic.errors import PartitionError
from dnic.graph.graph import Graph, Operation
from dnic.partition import (
    Decision,
    DeviceGroup,
    InterfaceChoice,
    Links,
    PartitionRequest,
    Plan,
    decide,
    make_plan,
)
from dnic.partition.alternative import Alternative
from dnic.partition.plan import PlannedOptimizer, PlannedTraining
from dnic.partition.verdict import MARGIN
from tests.partition.planning import LABELS

Chain = Callable[..., Graph]
Make = Callable[..., Operation]
LAYERS = [1_000_000_000] * 8
SLOW = Link(name="slow", bandwidth_bytes_per_s=1e6, latency_us=20_000.0)
ALL = {
    "one_device",
    "ddp",
    "naive",
    "gpipe",
    "1f1b",
    "interleaved_1f1b",
    "zero_bubble",
    "decoupled",
    "stale",
    "virtual",
    "local",
}


def decided(graph: Graph, device: DeviceProfile, request: PartitionRequest) -> Decision:
    return decide(graph, cost_model(graph, device), request, LABELS)


def named(decision: Decision, name: str) -> Alternative:
    return next(a for a in decision.found if a.name == name)


def test_every_way_is_listed_fastest_first(chain: Chain, device: DeviceProfile) -> None:
    decision = decided(chain(LAYERS), device, PartitionRequest(2))
    assert {a.name for a in decision.found} == ALL
    speeds = [a.useful_samples_per_s for a in decision.found if not a.unfit]
    assert speeds == sorted(speeds, reverse=True)
    assert {a.name for a in decision.found if a.runs} == ALL
    assert decision.chosen.runs


def test_one_device_has_one_way(chain: Chain, device: DeviceProfile) -> None:
    decision = decided(chain(LAYERS), device, PartitionRequest(1))
    assert [a.name for a in decision.found] == ["one_device"]
    assert (decision.verdict.decouple, decision.verdict.best) == (False, "one_device")
    assert "there is one device" in decision.verdict.reason
    assert decision.schedule.mode == "backprop"


def test_a_slow_link_makes_it_cool(chain: Chain, device: DeviceProfile) -> None:
    """Long layers, small activations: nothing exact can hide 20 ms, a window can."""
    graph = chain([20_000_000_000] * 8)
    link = Link(name="far", bandwidth_bytes_per_s=1e9, latency_us=200_000.0)
    far = PartitionRequest(2, links=Links(default=link))
    decision = decided(graph, device, far)
    assert (decision.verdict.decouple, decision.verdict.best) == (True, "decoupled")
    assert decision.verdict.speedup > 1.2
    assert "the best exact way" in decision.verdict.reason
    assert decision.schedule.mode == "decoupled"
    assert max(named(decision, "decoupled").windows) > 2


def test_a_link_that_cannot_carry_it_makes_it_meh(chain: Chain, device: DeviceProfile) -> None:
    decision = decided(chain([1000] * 8), device, PartitionRequest(2, links=Links(SLOW)))
    assert decision.verdict.decouple is False
    assert decision.verdict.best == "one_device"
    assert decision.verdict.speedup < 1
    assert decision.verdict.reason.startswith("stay with one device: decoupled stages would run")


def test_the_verdict_leaves_a_margin(chain: Chain, device: DeviceProfile) -> None:
    decision = decided(chain(LAYERS), device, PartitionRequest(2))
    exact = max(a.useful_samples_per_s for a in decision.found if not a.decouples and not a.unfit)
    ours = named(decision, "decoupled").useful_samples_per_s
    assert decision.verdict.speedup == pytest.approx(ours / exact)
    assert decision.verdict.decouple is (ours / exact > 1 + MARGIN)


def test_a_penalty_turns_the_verdict(chain: Chain, device: DeviceProfile) -> None:
    """So many more steps for the same quality that what is faster is no longer better."""
    graph = chain([100_000_000_000] * 8)
    far = Links(Link(name="far", bandwidth_bytes_per_s=1e9, latency_us=200_000.0))
    free = decided(graph, device, PartitionRequest(2, links=far))
    costly = InterfaceChoice(penalty=(("synthetic", 2.0),))
    dear = decided(graph, device, PartitionRequest(2, links=far, default=costly))
    assert free.verdict.decouple and not dear.verdict.decouple
    assert named(dear, "decoupled").samples_per_s == named(free, "decoupled").samples_per_s
    assert named(dear, "decoupled").useful_samples_per_s == pytest.approx(
        named(free, "decoupled").samples_per_s / 3
    )


@pytest.mark.parametrize(
    ("schedule", "mode"),
    [
        ("decoupled", "decoupled"),
        ("exact", "exact"),
        ("1f1b", "1f1b"),
        ("gpipe", "gpipe"),
        ("ddp", "ddp"),
        ("backprop", "backprop"),
    ],
)
def test_what_is_asked_for_is_what_is_planned(
    schedule: str, mode: str, chain: Chain, device: DeviceProfile
) -> None:
    graph = chain(LAYERS)
    request = PartitionRequest(2, schedule=schedule)  # type: ignore[arg-type]
    decision = decided(graph, device, request)
    assert decision.schedule.mode == mode
    plan = plan_of(graph, device, request, decision)
    assert plan.schedule.mode == mode
    assert len(plan.stages) == (1 if schedule in ("ddp", "backprop") else 2)
    assert plan.prediction.step_us == decision.chosen.outcome.step_us
    assert {i.gradient for i in plan.interfaces} <= (
        {"synthetic"} if schedule == "decoupled" else {"exact"}
    )
    if schedule == "ddp":
        assert plan.schedule.processes == 2
    if schedule in ("1f1b", "gpipe"):
        assert plan.schedule.microbatches > 1


def plan_of(
    graph: Graph, device: DeviceProfile, request: PartitionRequest, decision: Decision
) -> Plan:
    training = PlannedTraining(batch_size=4, epochs=1, optimizer=PlannedOptimizer())
    placed = decision.chosen.placement
    costs = cost_model(graph, device)
    return decision.told(
        make_plan(graph, graph, costs, placed.cuts, request, training, LABELS, placed)
    )


def test_cuts_that_are_asked_for_are_decoupled(chain: Chain, device: DeviceProfile) -> None:
    """Whatever is faster: who names a cut wants it."""
    graph = chain([1000] * 8)
    assert decided(graph, device, PartitionRequest(2)).schedule.mode == "backprop"
    decision = decided(graph, device, PartitionRequest(2, cuts=("layers.3",)))
    assert (decision.schedule.mode, decision.chosen.placement.cuts) == ("decoupled", (5,))
    assert not decision.verdict.decouple


def test_no_interface_may_be_decoupled(chain: Chain, device: DeviceProfile) -> None:
    decision = decided(chain(LAYERS), device, PartitionRequest(2, max_decoupled=0))
    assert not any(a.name == "decoupled" for a in decision.found)
    assert not decision.verdict.decouple
    assert "no interface may be decoupled" in decision.verdict.reason


def test_one_decoupled_interface_of_three(chain: Chain, device: DeviceProfile) -> None:
    request = PartitionRequest(4, stages=4, max_decoupled=1)
    graph = chain(LAYERS)
    decision = decided(graph, device, request)
    plan = plan_of(graph, device, request, decision)
    apart = [i.gradient for i in plan.interfaces if i.gradient != "exact"]
    assert apart == ["synthetic"]
    exact = [i.reason for i in plan.interfaces if i.gradient == "exact"]
    assert exact == ["at most 1 predicted: each step waits for the true gradient here"] * 2


def test_what_does_not_fit_says_by_how_much(
    operation: Make, graph_of: Callable[..., Graph], device: DeviceProfile
) -> None:
    """Two layers of 4 MB with Adam on devices of 20 MB: half of the model fits, all of it not."""
    operations = [operation("x", kind="input", differentiable=False)]
    for i in range(2):
        operations.append(
            operation(
                f"layer{i}",
                (operations[-1].name,),
                parameters=(f"layer{i}.w",),
                parameter_bytes=4_000_000,
                flops=10**9,
            )
        )
    operations.append(operation("output", (operations[-1].name,), kind="output", shape=None))
    graph = graph_of(operations)
    decision = decided(graph, device, PartitionRequest(2, memory_bytes=20_000_000))
    for name in ("one_device", "ddp"):
        assert "needs 0.0" in named(decision, name).unfit
        assert "and has 0.0186 GiB" in named(decision, name).unfit
    assert decision.chosen.placement.stages == 2
    with pytest.raises(PartitionError, match=r"stage \d needs .* MiB, device \d has 977 KiB"):
        decided(graph, device, PartitionRequest(2, memory_bytes=1_000_000))
    with pytest.raises(PartitionError, match="DDP cannot run: device 0 needs"):
        decided(graph, device, PartitionRequest(2, memory_bytes=20_000_000, schedule="ddp"))


def test_a_tensor_that_skips_stages_is_not_for_torchs_pipelines(
    operation: Make, graph_of: Callable[..., Graph], device: DeviceProfile
) -> None:
    operations = [operation("x", kind="input", differentiable=False)]
    for i in range(6):
        sources = (operations[-1].name,) if i < 5 else ("layer4", "layer0")
        operations.append(operation(f"layer{i}", sources, flops=10**9))
    operations.append(operation("output", ("layer5",), kind="output", shape=None))
    graph = graph_of(operations)
    decision = decided(graph, device, PartitionRequest(3, stages=3))
    assert "skips stages, which torch's schedules cannot" in named(decision, "gpipe").unfit
    assert named(decision, "decoupled").runs
    # Our engine runs 1F1B all the same, as exact stages with microbatches.
    ours = named(decision, "1f1b")
    assert (ours.unfit, ours.mode, ours.outcome.name[:10]) == ("", "exact", "eager 1F1B")
    best = replace(decision, chosen=ours, request=PartitionRequest(3)).schedule
    assert (best.mode, best.microbatches) == ("exact", ours.microbatches)
    asked = decided(graph, device, PartitionRequest(3, stages=3, schedule="1f1b"))
    assert asked.schedule.mode == "exact"
    assert asked.schedule.microbatches == asked.chosen.microbatches == ours.microbatches > 1
    whole = decided(graph, device, PartitionRequest(3, stages=3, schedule="exact"))
    assert (whole.schedule.mode, whole.schedule.microbatches) == ("exact", 1)


@pytest.mark.parametrize(
    ("schedule", "microbatches", "planned"),
    [("exact", 2, ("exact", 2)), ("exact", 1, ("exact", 1)), ("1f1b", 2, ("1f1b", 2))],
)
def test_microbatches_of_exact_stages_are_asked_for(
    schedule: str,
    microbatches: int,
    planned: tuple[str, int],
    chain: Chain,
    device: DeviceProfile,
) -> None:
    request = PartitionRequest(2, schedule=schedule, microbatches=microbatches)  # type: ignore[arg-type]
    graph = chain(LAYERS)
    decision = decided(graph, device, request)
    assert (decision.schedule.mode, decision.schedule.microbatches) == planned
    plan = plan_of(graph, device, request, decision)
    assert {interface.gradient for interface in plan.interfaces} == {"exact"}


def test_the_faster_device_gets_more(chain: Chain, device: DeviceProfile) -> None:
    graph = chain([10_000_000_000] * 9)
    apart = (DeviceGroup(1, speed=1.0), DeviceGroup(1, speed=2.0))
    request = PartitionRequest(2, groups=apart, schedule="decoupled")
    decision = decided(graph, device, request)
    placed = decision.chosen.placement
    plan = plan_of(graph, device, request, decision)
    slow, fast = (placed.groups.index(group) for group in (0, 1))
    assert plan.stages[fast].time_share > 1.5 * plan.stages[slow].time_share
    assert [stage.device for stage in plan.stages] == list(placed.groups)
    even = decided(graph, device, PartitionRequest(2, schedule="decoupled"))
    assert decision.chosen.outcome.step_us < even.chosen.outcome.step_us


def test_replicas_are_weighed_against_stages(chain: Chain, device: DeviceProfile) -> None:
    """One layer takes half of the time: a third device can only help as a copy of its stage."""
    graph = chain([1_000_000_000, 40_000_000_000, 20_000_000_000, 19_000_000_000])
    decision = decided(graph, device, PartitionRequest(3))
    wide = named(decision, "decoupled_replicas")
    assert sorted(wide.placement.replicas) == [1, 2]
    assert wide.mode is None
    assert wide.samples_per_s > 1.2 * named(decision, "decoupled").samples_per_s


@pytest.mark.parametrize(
    ("schedule", "cuts", "planned"),
    [
        ("decoupled", None, ("decoupled", 1)),
        ("exact", None, ("exact", 2)),
        ("1f1b", None, ("exact", 2)),
        ("auto", ("layers.3",), ("decoupled", 1)),
    ],
)
def test_every_stage_has_the_replicas_that_are_asked_for(
    schedule: str,
    cuts: tuple[str, ...] | None,
    planned: tuple[str, int],
    chain: Chain,
    device: DeviceProfile,
) -> None:
    graph = chain([20_000_000_000] * 8)
    request = PartitionRequest(
        4,
        schedule=schedule,  # type: ignore[arg-type]
        cuts=cuts,
        replicas=2,
        microbatches=2 if planned[0] == "exact" else "auto",
    )
    decision = decided(graph, device, request)
    assert decision.chosen.placement.replicas == (2, 2)
    assert decision.chosen.outcome.devices == len(decision.chosen.outcome.busy) == 4
    plan = plan_of(graph, device, request, decision)
    assert (plan.schedule.mode, plan.schedule.microbatches) == planned
    assert (plan.schedule.replicas, plan.schedule.shard) == (2, False)
    assert [stage.device for stage in plan.stages] == [0, 2]
    parts = decided(graph, device, replace(request, shard=True))
    assert parts.schedule.shard
    whole, part = (max(d.chosen.outcome.peak_memory_bytes) for d in (decision, parts))
    assert part < whole


def test_replicas_may_be_the_fastest_way(chain: Chain, device: DeviceProfile) -> None:
    """Two layers, two machines of two devices, and a slow link between these."""
    graph = chain([100_000_000_000] * 2)
    far = Link(name="far", bandwidth_bytes_per_s=1e9, latency_us=200_000.0)
    machines = (DeviceGroup(2), DeviceGroup(2))
    request = PartitionRequest(4, groups=machines, links=Links(between={(0, 1): far}))
    decision = decided(graph, device, request)
    found = named(decision, "decoupled_replicas")
    assert found.placement.replicas == (2, 2)
    assert found.eligible
    assert decision.verdict.decouple
    assert decision.verdict.best == "decoupled_replicas"
    assert decision.schedule.replicas == 2


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (PartitionRequest(2, replicas=2, schedule="decoupled"), "2 replicas of every stage on 2"),
        (PartitionRequest(4, replicas=2, schedule="stale"), "as stale"),
        (PartitionRequest(4, replicas=2, schedule="gpipe"), "as gpipe"),
    ],
)
def test_replicas_that_cannot_be_had(
    request_: PartitionRequest, told: str, chain: Chain, device: DeviceProfile
) -> None:
    with pytest.raises(PartitionError, match=told):
        decided(chain(LAYERS), device, request_)


def test_crowded_cores_are_slower_together_only(chain: Chain, device: DeviceProfile) -> None:
    graph = chain(LAYERS)
    slow = device.model_copy(
        update={"crowded": device.crowded.model_copy(update={"arithmetic": 1.5, "memory": 1.5})}
    )
    request = PartitionRequest(2)
    free = decided(graph, slow, request)
    crowded = decided(graph, slow, replace(request, crowded=True))
    assert named(free, "one_device").samples_per_s == named(crowded, "one_device").samples_per_s
    assert named(free, "ddp").samples_per_s > 1.2 * named(crowded, "ddp").samples_per_s


def test_bytes_of_every_link_and_staleness(chain: Chain, device: DeviceProfile) -> None:
    decision = decided(chain(LAYERS), device, PartitionRequest(2))
    message = 4 * 16 * 4  # [B, 16] float32 at a batch of 4
    assert named(decision, "decoupled").outcome.link_bytes == ((message, message),)
    assert named(decision, "one_device").outcome.link_bytes == ()
    assert max(named(decision, "stale").outcome.staleness) > 0
    assert max(named(decision, "1f1b").outcome.staleness) == 0
