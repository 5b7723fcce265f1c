"""Late gradients in turns with predicted ones: where `auto` takes them, and where it does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dnic.cost import DeviceProfile, Link
from dnic.graph.graph import Graph, Operation
from dnic.partition import (
    InterfaceChoice,
    Links,
    PartitionRequest,
    Plan,
    PlannedTarget,
)
from dnic.partition.alternating import MOST_LATE, MOST_LATE_ALONE, MOST_LATE_EXACT
from dnic.partition.defaults import TAIL_WIDTH, Kind
from tests.partition.planning import LABELS, planned

Chain = Callable[..., Graph]
TOKENS = PlannedTarget(shape=("B", 7), dtype="int64", classes=10)
LAYERS = [1_000_000_000] * 12
NEAR = Links()
FAR = Links(Link(name="far", bandwidth_bytes_per_s=1e9, latency_us=200_000.0))


def plan_of(
    graph: Graph,
    device: DeviceProfile,
    cuts: tuple[str, ...],
    *,
    links: Links = NEAR,
    target: PlannedTarget = LABELS,
    **rest: Any,
) -> Plan:
    request = PartitionRequest(len(cuts) + 1, cuts=cuts, links=links, **rest)
    return planned(graph, device, request, target)


def cuts_for(stages: int) -> tuple[str, ...]:
    """Of 12 layers into equal stages."""
    return tuple(f"layers.{12 // stages * stage - 1}" for stage in range(1, stages))


def chosen(stages: int, **keys: Any) -> InterfaceChoice:
    return InterfaceChoice(stages=stages, **keys)


@pytest.mark.parametrize("stages", [2, 3, 4, 6])
def test_every_second_interface_from_the_last_is_late(
    stages: int, chain: Chain, device: DeviceProfile
) -> None:
    plan = plan_of(chain(LAYERS), device, cuts_for(stages), default=chosen(stages))
    backwards = [row.gradient for row in reversed(plan.interfaces)]
    # A single interface has nothing to take turns with.
    turns = ["stale", "local"] * 3 if stages > 2 else ["synthetic"]
    assert backwards == turns[: stages - 1]
    for row in plan.interfaces:
        late = row.gradient == "stale"
        assert row.predict_weights == late
        assert (row.head is None) == late
        if late:
            assert row.window <= MOST_LATE["vector"]
            assert "no other late gradient adds to it" in row.reason


@pytest.mark.parametrize(
    ("target", "keys", "gradient"),
    [
        (TOKENS, {}, "stale"),
        (TOKENS, {"default": chosen(2, window=MOST_LATE_ALONE)}, "stale"),
        (TOKENS, {"default": chosen(2, window=MOST_LATE_ALONE + 1)}, "local"),
        (TOKENS, {"default": chosen(2, window=2)}, "stale"),
        (TOKENS, {"default": chosen(2, window=2, sources=("virtual", "stale"))}, "stale"),
        (TOKENS, {"default": chosen(2, window=3, sources=("virtual", "stale"))}, "virtual"),
        (TOKENS, {"default": chosen(2, sources=("virtual", "local"))}, "local"),
        (TOKENS, {"may_be_late": False}, "local"),
        (TOKENS, {"links": FAR}, "local"),
        (LABELS, {}, "local"),
    ],
)
def test_the_only_interface_is_late_where_every_position_has_a_target(
    target: PlannedTarget,
    keys: dict[str, Any],
    gradient: str,
    chain: Chain,
    device: DeviceProfile,
) -> None:
    graph = chain(LAYERS, shape=("B", 7, 64))
    plan = plan_of(graph, device, cuts_for(2), target=target, **({"default": chosen(2)} | keys))
    (row,) = plan.interfaces
    assert row.gradient == gradient
    assert row.predict_weights == (gradient == "stale")
    assert row.window <= MOST_LATE_ALONE or gradient != "stale"
    begins = gradient == "stale" and row.window > MOST_LATE_EXACT
    # A local loss only where `auto` may take one.
    begins = begins and "local" in keys.get("default", chosen(2)).sources
    assert row.warmup == ("local" if begins else "exact")
    assert (row.head is not None) == (begins or gradient != "stale")


@pytest.mark.parametrize(
    ("stages", "links", "keys", "tails"),
    [
        (4, FAR, {}, [(1, TAIL_WIDTH)] * 3),
        (4, NEAR, {"gradient": "local"}, [(1, TAIL_WIDTH)] * 3),
        (2, FAR, {}, [(0, None)]),
        (4, NEAR, {}, [(0, None)]),  # in turns
        (4, FAR, {"hidden_layers": 0}, [(0, None)] * 3),
        (4, FAR, {"width": 8}, [(0, 8)] * 3),
        (4, FAR, {"sources": ("virtual",)}, [(0, None)] * 3),
    ],
)
def test_a_chain_of_local_losses_has_a_hidden_layer(
    stages: int,
    links: Links,
    keys: dict[str, Any],
    tails: list[tuple[int, int | None]],
    chain: Chain,
    device: DeviceProfile,
) -> None:
    graph = chain(LAYERS, shape=("B", 7, 64))
    given = graph, device, cuts_for(stages)
    plan = plan_of(*given, links=links, target=TOKENS, default=chosen(stages, **keys))
    heads = [row.head for row in plan.interfaces if row.head is not None]
    assert [(head.hidden_layers, head.width) for head in heads] == tails


def test_another_predictor_in_a_chain_of_local_losses(chain: Chain, device: DeviceProfile) -> None:
    other = {cuts_for(4)[1]: chosen(4, gradient="virtual")}
    graph = chain(LAYERS, shape=("B", 7, 64))
    given = graph, device, cuts_for(4)
    plan = plan_of(*given, links=FAR, target=TOKENS, default=chosen(4), choices=other)
    layers = {row.gradient: row.head.hidden_layers for row in plan.interfaces if row.head}
    assert layers == {"local": 1, "virtual": 0}


def test_a_gradient_that_comes_too_late_is_predicted(chain: Chain, device: DeviceProfile) -> None:
    given = chain(LAYERS), device, cuts_for(4)
    far = plan_of(*given, links=FAR, default=chosen(4))
    assert [row.gradient for row in far.interfaces] == ["local"] * 3


@pytest.mark.parametrize(
    ("kind", "shape", "target"),
    [
        ("vector", ("B", 16), LABELS),
        ("map", ("B", 8, 4, 4), LABELS),
        ("sequence", ("B", 7, 64), LABELS),
        ("positions", ("B", 7, 64), TOKENS),
    ],
)
def test_how_late_it_may_be_depends_on_what_crosses(
    kind: Kind,
    shape: tuple[int | str, ...],
    target: PlannedTarget,
    chain: Chain,
    device: DeviceProfile,
) -> None:
    given = chain(LAYERS, shape=shape), device, cuts_for(4)
    most = MOST_LATE[kind]
    assert most == (4 if kind == "map" else 2)
    asked = plan_of(*given, target=target, default=chosen(4, window=most + 1))
    assert [row.gradient for row in asked.interfaces] == ["local"] * 3
    little = plan_of(*given, target=target, default=chosen(4, window=most))
    assert [row.gradient for row in little.interfaces] == ["stale", "local", "stale"]
    assert [row.window for row in little.interfaces] == [most] * 3
    # In turns with local losses nothing begins with one.
    assert [row.warmup for row in little.interfaces] == ["exact"] * 3


@pytest.mark.parametrize(
    "keys",
    [
        {"sources": ("synthetic", "virtual", "local")},
        {"return_every": 2},
        {"penalty": (("stale", 0.01),)},
        {"gradient": "local"},
    ],
)
def test_what_is_asked_for_holds(keys: dict[str, Any], chain: Chain, device: DeviceProfile) -> None:
    plan = plan_of(chain(LAYERS), device, cuts_for(4), default=chosen(4, **keys))
    assert [row.gradient for row in plan.interfaces] == ["local"] * 3


def test_an_optimizer_that_cannot_be_foreseen(chain: Chain, device: DeviceProfile) -> None:
    given = chain(LAYERS), device, cuts_for(4)
    plan = plan_of(*given, default=chosen(4), may_be_late=False)
    assert [row.gradient for row in plan.interfaces] == ["local"] * 3


def test_one_that_is_asked_for_takes_its_turn(chain: Chain, device: DeviceProfile) -> None:
    """Neighbours of a late interface are not late, whoever asked for it."""
    given = chain(LAYERS), device, cuts_for(4)
    name = cuts_for(4)[1]
    late = {name: chosen(4, gradient="stale")}
    plan = plan_of(*given, default=chosen(4), choices=late)
    assert [row.gradient for row in plan.interfaces] == ["local", "stale", "local"]
    waits = {name: chosen(4, gradient="exact")}
    plan = plan_of(*given, default=chosen(4), choices=waits)
    assert [row.gradient for row in plan.interfaces] == ["local", "exact", "stale"]


def test_nothing_learns_from_true_gradients_of_a_late_stage(
    chain: Chain, device: DeviceProfile
) -> None:
    """A stage's own tail may; what is before the stage, and needs its gradients, may not."""
    given = chain(LAYERS), device, cuts_for(4)
    learns = {cuts_for(4)[1]: chosen(4, gradient="synthetic")}
    plan = plan_of(*given, default=chosen(4), choices=learns)
    assert [row.gradient for row in plan.interfaces] == ["stale", "synthetic", "local"]


def test_what_skips_a_stage_is_predicted(
    operation: Callable[..., Operation],
    graph_of: Callable[..., Graph],
    device: DeviceProfile,
) -> None:
    """Two gradients meet behind the first two stages: neither is late, the third one's is."""
    operations = [operation("x", kind="input", differentiable=False)]
    for i in range(4):
        before = (operations[-1].name,) if i != 2 else ("l1", "l0")
        flops = 1_000_000_000
        operations.append(operation(f"l{i}", before, parameters=(f"l{i}.w",), flops=flops))
    operations.append(operation("output", ("l3",), kind="output", shape=None))
    plan = plan_of(graph_of(operations), device, ("l0", "l1", "l2"), default=chosen(4))
    found = {row.name: row.gradient for row in plan.interfaces}
    assert len(found) == 4
    assert found.pop("l2") == "stale"
    assert set(found.values()) == {"local"}
