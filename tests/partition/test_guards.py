"""What plans say of guards and of when heads learn, and what it costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import yaml

from dnic.asked import _interface_again
from dnic.codegen.planfile import plan_text
from dnic.compiler.ask import request_of
from dnic.cost import DeviceProfile, load_profile
from dnic.errors import PartitionError, SpecError
from dnic.graph.graph import Graph
from dnic.partition import (
    InterfaceChoice,
    PartitionRequest,
    Plan,
    check_plan,
)
from dnic.partition.defaults import learns_every
from dnic.partition.guard import PlannedGuard
from dnic.runtime.guardplan import read_guard
from dnic.runtime.plan import GuardPlan
from dnic.spec import Spec, spec_from_mapping, spec_from_text
from tests.partition.planning import TRAINING, planned

Chain = Callable[..., Graph]


def plan_of(graph: Graph, device: DeviceProfile, **keys: Any) -> Plan:
    choice = InterfaceChoice(**{"gradient": "synthetic", "width": 4, **keys})
    request = PartitionRequest(2, cuts=("layers.3",), default=choice)
    return planned(graph, device, request)


def test_a_plan_says_what_the_guard_does(chain: Chain, device: DeviceProfile) -> None:
    graph = chain([1_000_000] * 8)
    guard = PlannedGuard(check_every=7, minimum=0.1, fallback="none")
    for asked, read in ((guard, GuardPlan(7, 2, 500, 0.1, "none")), (None, None)):
        plan = plan_of(graph, device, guard=asked, warmup_until=0.2)
        (row,) = yaml.safe_load(plan_text(plan))["interfaces"]
        assert read_guard(row["guard"]) == read
        assert row["warmup_until"] == 0.2
        assert Plan.model_validate(plan.model_dump(by_alias=True)) == plan
    (row,) = yaml.safe_load(plan_text(plan_of(graph, device)))["interfaces"]
    assert read_guard(row["guard"]) == GuardPlan() == read_guard(None)


def test_learning_now_and_then_costs_less(chain: Chain, device: DeviceProfile) -> None:
    graph = chain([1_000_000] * 8)
    always, fourth = (plan_of(graph, device, train_every=k) for k in (1, 4))
    (one,), (other,) = always.interfaces, fourth.interfaces
    assert one.head is not None and other.head is not None
    assert (one.head.train_every, other.head.train_every) == (1, 4)
    assert one.head.train_us == other.head.train_us, "of a step that learns"
    saved_us = always.prediction.step_us - fourth.prediction.step_us
    assert saved_us == pytest.approx(one.head.train_us * 3 / 4, rel=0.01)


def test_stages_that_wait_do_not_update_by_chance(chain: Chain, device: DeviceProfile) -> None:
    graph = chain([1_000_000] * 8)
    sparse = {"train": TRAINING.model_copy(update={"update_probability": 0.5})}
    check_plan(plan_of(graph, device).model_copy(update=sparse))
    exact = plan_of(graph, device, gradient="exact").model_copy(update=sparse)
    with pytest.raises(PartitionError, match="waits for every gradient, and stages update by"):
        check_plan(exact)


def asked(**interfaces: Any) -> Spec:
    return spec_from_mapping({"interfaces": interfaces}, "test")


def test_from_a_spec_into_a_plan_and_back(chain: Chain, device: DeviceProfile) -> None:
    graph = chain([1_000_000] * 8)
    spec = asked(
        default={"guard": {"patience": 5, "minimum": 0.05}, "head": {"train_every": 2}},
        layer2={
            "guard": {
                "retry_after": 9,
                "minimum": "auto",
                "proof": 3,
                "at_first": 0.01,
                "growth": 5,
            },
            "warmup_until": 0.3,
        },
        layer3={"guard": False},
        layer4={"guard": True},
    )
    request = request_of(spec, load_profile("cpu-core"), graph)
    default, own, off, on = (request.choice_at(n) for n in ("layer1", "layer2", "layer3", "layer4"))
    assert default.guard == on.guard == PlannedGuard(patience=5, minimum=0.05)
    assert own.guard == PlannedGuard(
        patience=5, minimum="auto", retry_after=9, proof=3, at_first=0.01, growth=5
    )
    assert (own.warmup_until, default.warmup_until, off.guard) == (0.3, None, None)
    assert own.train_every == 2 and learns_every("synthetic", own) == 2
    for choice in (own, off):
        keys = {"guard": choice.guard, "train_every": 2, "warmup_until": choice.warmup_until}
        plan = plan_of(graph, device, **keys)
        (interface,) = plan.interfaces
        again = asked(layer2=_interface_again(interface, plan))
        found = request_of(again, load_profile("cpu-core"), graph).choice_at("layer2")
        assert {key: getattr(found, key) for key in keys} == keys


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("interfaces: {default: {guard: {fallback: stale}}}", "fallback cannot be 'stale'"),
        ("interfaces: {default: {guard: {minimum: 1.0}}}", "guard.minimum cannot be 1.0"),
        ("interfaces: {default: {guard: {minimum: all}}}", "guard.minimum cannot be 'all'"),
        ("interfaces: {default: {guard: {proof: 0}}}", "guard.proof cannot be 0"),
        ("interfaces: {default: {guard: {at_first: 1}}}", "guard.at_first cannot be 1"),
        ("interfaces: {default: {guard: {growth: 0}}}", "guard.growth cannot be 0"),
        ("interfaces: {default: {guard: 3}}", "guard"),
        (
            "interfaces: {default: {guard: {check: 3}}}",
            "unknown key interfaces.default.guard.check",
        ),
        ("interfaces: {default: {warmup_until: 1.5}}", "warmup_until cannot be 1.5"),
        ("interfaces: {default: {head: {train_every: 0}}}", "train_every cannot be 0"),
        ("train: {update_probability: 0}", "update_probability cannot be 0"),
    ],
)
def test_what_a_spec_cannot_ask(text: str, problem: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_text(text, "spec.yaml")
    assert problem in str(caught.value)
