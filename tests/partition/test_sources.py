"""Which source predicts an interface's gradients, what it costs, and what it sends back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from dnic.cost import DeviceProfile, TailChoice, TargetSize, cost_model
from dnic.errors import PartitionError
from dnic.graph.graph import Graph, Value
from dnic.partition import (
    Decision,
    InterfaceChoice,
    PartitionRequest,
    Plan,
    choose_cuts,
    decide,
    defaults,
    make_plan,
)
from dnic.partition.check import check_plan
from dnic.partition.choose import place
from dnic.partition.defaults import Rule, kind_of, layers_of, source_of
from dnic.partition.plan import PlannedOptimizer, PlannedTarget, PlannedTraining
from dnic.runtime import registry
from dnic.runtime.predictors.nothing import Nothing
from dnic.runtime.registry import predictor_kind, register
from tests.partition.planning import LABELS

Chain = Callable[..., Graph]
LAYERS = [1_000_000_000] * 6


def planned(
    graph: Graph, device: DeviceProfile, target: PlannedTarget | None = LABELS, **choice: object
) -> Plan:
    costs = cost_model(graph, device)
    request = PartitionRequest(2, stages=2, default=InterfaceChoice(**choice))  # type: ignore[arg-type]
    cuts = choose_cuts(graph, costs, request)
    training = PlannedTraining(batch_size=graph.batch_size, epochs=1, optimizer=PlannedOptimizer())
    return make_plan(graph, graph, costs, cuts, request, training, target)


@pytest.mark.parametrize(
    ("gradient", "layers", "every"),
    [("synthetic", 1, 1), ("virtual", 0, 1), ("local", 1, 0), ("none", None, 0)],
)
def test_what_is_asked_for_is_planned(
    gradient: str, layers: int | None, every: int, chain: Chain, device: DeviceProfile
) -> None:
    plan = planned(chain(LAYERS), device, gradient=gradient)
    (interface,) = plan.interfaces
    assert (interface.gradient, interface.return_every) == (gradient, every)
    assert (interface.head.hidden_layers if interface.head else None) == layers
    if interface.head is not None:
        assert interface.head.forward_us > 0
        assert (interface.head.model_extra or {}).get("task") == (
            1.0 if gradient == "virtual" else None
        )
    by_list = planned(chain(LAYERS), device, gradient="auto", sources=(gradient,))
    assert by_list.interfaces == plan.interfaces


def test_options_reach_the_plan(chain: Chain, device: DeviceProfile) -> None:
    tail = TailChoice(targets="sampled")
    plan = planned(
        chain(LAYERS), device, gradient="virtual", task=0.25, tail=tail, hidden_layers=2, width=4
    )
    head = plan.interfaces[0].head
    assert head is not None
    assert (head.hidden_layers, head.width) == (2, 4)
    assert head.model_extra == {"task": 0.25, "targets": "sampled"}


def test_many_classes_are_sampled_and_the_plan_says_so(chain: Chain, device: DeviceProfile) -> None:
    many = PlannedTarget(shape=("B",), dtype="int64", classes=50_000)
    plans = [
        planned(chain(LAYERS), device, many, gradient="local", tail=TailChoice(targets=targets))
        for targets in ("auto", "full")
    ]
    heads = [plan.interfaces[0].head for plan in plans]
    assert heads[0] is not None and heads[1] is not None
    assert heads[0].model_extra == {"targets": "sampled"}
    assert heads[1].model_extra == {"targets": "full"}
    assert heads[0].forward_us < heads[1].forward_us
    assert plans[0].prediction.step_us <= plans[1].prediction.step_us


def test_clusters_reach_the_plan(chain: Chain, device: DeviceProfile) -> None:
    many = PlannedTarget(shape=("B",), dtype="int64", classes=50_000)
    cost = {}
    for targets in ("sampled", "clustered", "full"):
        tail = TailChoice(targets=targets)
        (row,) = planned(chain(LAYERS), device, many, gradient="virtual", tail=tail).interfaces
        assert row.head is not None
        assert (row.head.model_extra or {})["targets"] == targets
        cost[targets] = row.head.forward_us + row.head.train_us
    assert cost["clustered"] < cost["full"]
    assert cost["clustered"] != cost["sampled"]


REAL = PlannedTarget(shape=("B",), dtype="float32", classes=None)
TWO = PlannedTarget(shape=("B",), dtype="int64", classes=2)


@pytest.mark.parametrize(
    ("tail", "target", "why"),
    [
        (TailChoice(targets="clustered"), REAL, "the targets are real values"),
        (TailChoice(targets="sampled"), REAL, "the targets are real values"),
        (TailChoice(targets="clustered"), TWO, "nothing to cluster in 2 classes"),
        (TailChoice(loss="model"), LABELS, "output is not one tensor with the batch first"),
        (TailChoice(loss="model", output=(7, "B")), None, "output is not one tensor"),
    ],
)
def test_tails_that_nothing_can_score_are_refused(
    tail: TailChoice, target: PlannedTarget | None, why: str, chain: Chain, device: DeviceProfile
) -> None:
    with pytest.raises(PartitionError, match=f"no local gradient for .*{why}"):
        planned(chain(LAYERS), device, target, gradient="local", tail=tail)
    (row,) = planned(chain(LAYERS), device, target, sources=("local",), tail=tail).interfaces
    assert row.gradient == "exact"


def test_a_tail_without_targets_is_refused(chain: Chain, device: DeviceProfile) -> None:
    with pytest.raises(
        PartitionError, match=r"no virtual gradient for .*: there are no training data"
    ):
        planned(chain(LAYERS), device, None, gradient="virtual")
    (interface,) = planned(chain(LAYERS), device, None, sources=("virtual",)).interfaces
    assert interface.gradient == "exact"


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> str:
    """A registered source that says nothing of replicas."""
    for name in registry.BUILT_IN:
        predictor_kind(name)
    monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))
    register("alone", replicated=False)(Nothing)
    return "alone"


def with_replicas(graph: Graph, device: DeviceProfile, **choice: object) -> Decision:
    request = PartitionRequest(4, replicas=2, default=InterfaceChoice(**choice))  # type: ignore[arg-type]
    return decide(graph, cost_model(graph, device), request, LABELS)


@pytest.mark.parametrize("gradient", ["virtual", "local"])
def test_tails_have_replicas(gradient: str, chain: Chain, device: DeviceProfile) -> None:
    decision = with_replicas(chain(LAYERS), device, gradient=gradient)
    assert (decision.chosen.name, decision.chosen.replicas) == ("decoupled_replicas", 2)
    assert [row.gradient for row in decision.chosen.decided_interfaces] == [gradient]


def test_a_source_that_cannot_have_replicas_is_refused(
    chain: Chain, device: DeviceProfile, alone: str
) -> None:
    graph = chain(LAYERS)
    with pytest.raises(PartitionError, match="alone does not learn in several replicas") as told:
        with_replicas(graph, device, gradient=alone)
    assert str(told.value.where).startswith("interfaces.")
    assert "partition.replicas: 1" in str(told.value.hint)
    assert "replicated = True" in str(told.value.expected)
    register("alone", replicated=True)(Nothing)
    assert with_replicas(graph, device, gradient=alone).chosen.name == "decoupled_replicas"


def test_auto_does_not_take_it_where_there_are_replicas(
    chain: Chain, device: DeviceProfile, alone: str
) -> None:
    """Asked for replicas, gradients are awaited; else no replicas are had with it."""
    graph = chain(LAYERS)
    chosen = with_replicas(graph, device, sources=(alone,)).chosen
    assert (chosen.name, chosen.replicas) == ("1f1b_ddp", 2)
    # Planned as stages that wait, not found to wait afterwards.
    request = PartitionRequest(4, stages=2, replicas=2, default=InterfaceChoice(sources=(alone,)))
    for copies, source in ((2, "exact"), (1, "synthetic")):
        placement = place(
            graph, cost_model(graph, device), request, replicas=(copies,), target=LABELS
        )
        assert placement.sources == (source,)
    for choice in (InterfaceChoice(sources=(alone,)), InterfaceChoice(gradient=alone)):
        request = PartitionRequest(4, default=choice)
        found = decide(graph, cost_model(graph, device), request, LABELS).found
        for way in found:
            taken = {row.gradient for row in way.decided_interfaces}
            assert alone not in taken or max(way.placement.replicas) == 1
        assert any(alone in {r.gradient for r in way.decided_interfaces} for way in found)


def test_a_plan_that_returns_nothing_to_who_waits_is_wrong(
    chain: Chain, device: DeviceProfile
) -> None:
    plan = planned(chain(LAYERS), device, gradient="exact")
    for update in ({"return_every": 0}, {"predict_weights": True}):
        wrong = plan.interfaces[0].model_copy(update=update)
        with pytest.raises(PartitionError, match="the plan is wrong: interface"):
            check_plan(plan.model_copy(update={"interfaces": (wrong,)}))


def test_weights_are_predicted_where_asked(chain: Chain, device: DeviceProfile) -> None:
    plan = planned(chain(LAYERS), device, gradient="stale", predict_weights=True)
    assert plan.interfaces[0].predict_weights
    plan = planned(chain(LAYERS), device, gradient="synthetic", predict_weights=True)
    assert not plan.interfaces[0].predict_weights


@pytest.mark.parametrize(
    ("window", "asked", "begins"),
    [(1, "auto", "exact"), (2, "auto", "local"), (3, "exact", "exact"), (1, "none", "none")],
)
def test_what_late_gradients_begin_with(
    chain: Chain, device: DeviceProfile, window: int, asked: str, begins: str
) -> None:
    plan = planned(chain(LAYERS), device, gradient="stale", window=window, warmup=asked)
    (interface,) = plan.interfaces
    assert (interface.gradient, interface.warmup) == ("stale", begins)
    assert (interface.head is not None) == (begins == "local")
    assert interface.reason.startswith(f"{begins} gradients at first; then") == (begins != "exact")
    # In turns with others, and where nothing is late, nothing begins otherwise.
    other = planned(chain(LAYERS), device, gradient="synthetic", window=window, warmup=asked)
    assert other.interfaces[0].warmup == "exact"


def test_half_of_the_head_that_late_gradients_begin_with_is_counted(
    chain: Chain, device: DeviceProfile
) -> None:
    """A mean step of a run that has it for one half; the stage before the cut is the slower."""
    keys = {"gradient": "stale", "window": 3, "hidden_layers": 3, "width": 4096}
    graph = chain([3_000_000_000, 1_000_000_000])
    without, half = (planned(graph, device, warmup=w, **keys) for w in ("exact", "local"))
    (interface,) = half.interfaces
    assert interface.head is not None
    head_us = interface.head.forward_us + interface.head.train_us
    more = half.prediction.step_us - without.prediction.step_us
    assert more == pytest.approx(head_us / 2)
    held = half.stages[0].memory_bytes - without.stages[0].memory_bytes
    assert held >= 4 * interface.head.parameters
    check_plan(half)


def test_what_late_gradients_cannot_begin_with(chain: Chain, device: DeviceProfile) -> None:
    late = {"gradient": "stale", "window": 3}
    for asked, words in (("synthetic", "learns from true gradients"), ("local", "no local")):
        with pytest.raises(PartitionError, match=words) as told:
            planned(chain(LAYERS), device, None, warmup=asked, **late)
        assert told.value.where == "interfaces.layers.2.warmup"
    # Nobody asked: without targets there is no local loss.
    (interface,) = planned(chain(LAYERS), device, None, **late).interfaces
    assert interface.warmup == "exact"
    wrong = interface.model_copy(update={"warmup": "local", "gradient": "exact"})
    plan = planned(chain(LAYERS), device, None, **late)
    with pytest.raises(PartitionError, match="begins with local, and then is exact"):
        check_plan(plan.model_copy(update={"interfaces": (wrong,)}))


def test_other_predictors_are_listed_with_their_speed(chain: Chain, device: DeviceProfile) -> None:
    graph = chain(LAYERS)
    found = decide(graph, cost_model(graph, device), PartitionRequest(2), LABELS).found
    by_name = {alternative.name: alternative for alternative in found}
    assert "synthetic" not in by_name  # it is what is decoupled with here
    for name in ("virtual", "local"):
        assert by_name[name].mode == "decoupled"
        assert by_name[name].runs
        assert not by_name[name].eligible
    assert by_name["local"].outcome.link_bytes[0][1] == 0
    assert by_name["virtual"].outcome.link_bytes[0][1] > 0
    many = PartitionRequest(3, default=InterfaceChoice(stages=3))
    found = decide(graph, cost_model(graph, device), many, LABELS).found
    by_name = {alternative.name: alternative for alternative in found}
    assert [f.gradient for f in by_name["decoupled"].decided_interfaces] == ["local", "stale"]
    assert by_name["decoupled"].eligible
    for name in ("synthetic", "virtual", "local", "stale"):
        assert not by_name[name].eligible


def test_the_table_decides_what_auto_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    value = Value("h", ("B", 64), "float32", 0, True)
    choice = InterfaceChoice(sources=("synthetic", "virtual", "local"))
    assert source_of(choice, [value], LABELS) == "synthetic"
    table = (
        Rule("vector", "synthetic", stages=5),
        Rule("vector", "virtual", stages=4),
        Rule("vector", "local"),
        Rule("map", "synthetic"),
    )
    monkeypatch.setattr(defaults, "TABLE", table)
    assert source_of(choice, [value], LABELS) == "local"
    assert source_of(choice, [value], None) == "synthetic"  # a tail must have targets
    assert source_of(replace(choice, stages=5), [value], LABELS) == "synthetic"
    assert source_of(replace(choice, stages=4), [value], LABELS) == "virtual"
    assert source_of(replace(choice, stages=4, sources=("local",)), [value], LABELS) == "local"
    assert source_of(replace(choice, gradient="synthetic"), [value], LABELS) == "synthetic"


def test_positions_without_local_losses_have_a_tail() -> None:
    tokens = PlannedTarget(shape=("B", 7), dtype="int64", classes=10)
    sequence = Value("h", ("B", 7, 64), "float32", 0, True)
    for sources, taken in (
        (("synthetic", "virtual", "local"), "local"),
        (("synthetic", "virtual"), "virtual"),
        (("synthetic",), "synthetic"),
    ):
        assert source_of(InterfaceChoice(sources=sources), [sequence], tokens) == taken


def test_hidden_layers_that_are_left_open() -> None:
    choice = InterfaceChoice()
    vector, sequence = (Value("h", ("B", *rest), "float32", 0, True) for rest in ((64,), (7, 64)))
    tokens = PlannedTarget(shape=("B", 7), dtype="int64", classes=10)
    assert layers_of(choice, "virtual", [vector], LABELS) == 0
    assert layers_of(choice, "local", [vector], LABELS) == 1
    assert layers_of(choice, "local", [sequence], LABELS) == 1
    assert layers_of(choice, "local", [sequence], tokens) == 0
    assert layers_of(choice, "synthetic", [sequence], tokens) == 1
    assert layers_of(replace(choice, hidden_layers=3), "local", [sequence], tokens) == 3


@pytest.mark.parametrize(
    ("shape", "target", "kind"),
    [
        (("B", 64), TargetSize((), 10), "vector"),
        (("B", 7, 64), TargetSize((), 10), "sequence"),
        (("B", 7, 64), TargetSize((7,), 10), "positions"),
        (("B", 8, 16, 16), TargetSize((), 10), "map"),
        (("B", 8, 16, 16), TargetSize((16, 16), 10), "positions"),
        (("B", 8, 16, 16), None, "map"),
    ],
)
def test_kinds_of_interfaces(
    shape: tuple[int | str, ...], target: TargetSize | None, kind: str
) -> None:
    assert kind_of([Value("h", shape, "float32", 0, True)], target) == kind
