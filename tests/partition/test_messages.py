"""What is decided of messages, of gradients that come back now and then, and of late ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from dnic.cost import DeviceProfile, Link, cost_model
from dnic.errors import PartitionError
from dnic.graph.graph import Graph, Value
from dnic.partition import (
    Decision,
    InterfaceChoice,
    Links,
    PartitionRequest,
    Plan,
    check_plan,
    decide,
)
from dnic.partition.messages import plan_message
from tests.partition.planning import LABELS, planned

Chain = Callable[..., Graph]
LAYERS = [1_000_000_000] * 8
# 256 bytes of an activation take 25.6 ms, a stage of four layers about 12.
THIN = Links(Link(name="thin", bandwidth_bytes_per_s=1e4, latency_us=5.0))
MEGABYTE = Link(bandwidth_bytes_per_s=1e6, latency_us=1e6)


def plan_of(graph: Graph, device: DeviceProfile, links: Links | None = None, **keys: Any) -> Plan:
    cuts = ("layers.3",)
    request = PartitionRequest(
        2, cuts=cuts, links=links or Links(), default=InterfaceChoice(**keys)
    )
    return planned(graph, device, request)


def decision_of(graph: Graph, device: DeviceProfile, **keys: Any) -> Decision:
    far = Links(Link(name="far", bandwidth_bytes_per_s=1e9, latency_us=200_000.0))
    request = PartitionRequest(2, links=far, default=InterfaceChoice(**keys))
    return decide(graph, cost_model(graph, device), request, LABELS)


@pytest.mark.parametrize(
    ("message", "step_us", "apart", "dtype", "nbytes", "gradient_nbytes"),
    [
        ("auto", 4800.0, True, "float32", 4800, 4000),
        ("auto", 4799.0, True, "bfloat16", 2600, 2000),
        ("auto", 4799.0, False, "float32", 4800, 4000),
        ("fp32", 1.0, True, "float32", 4800, 4000),
        ("bf16", 1e9, False, "bfloat16", 2600, 2000),
    ],
)
def test_half_the_bytes_where_the_link_takes_longer_than_a_step(
    message: Any, step_us: float, apart: bool, dtype: str, nbytes: int, gradient_nbytes: int
) -> None:
    """4000 bytes of float32, 400 of float64 and 400 of integers over 1 MB/s; latency is free."""
    values = [
        Value("h", ("B",), "float32", 4000, True),
        Value("table", (50,), "float64", 400, False),
        Value("mask", ("B",), "int64", 400, False),
    ]
    choice = InterfaceChoice(message=message)
    made = plan_message(values, choice, MEGABYTE, step_us, apart=apart)
    if dtype == "bfloat16":
        nbytes = 2000 + 100 + 400
    assert (made.dtype, made.nbytes, made.gradient_nbytes) == (dtype, nbytes, gradient_nbytes)
    assert ("bf16" in made.reason) is (dtype == "bfloat16")


def test_nothing_to_halve_stays_as_it_is() -> None:
    values = [Value("h", ("B",), "float16", 4000, True)]
    assert plan_message(values, InterfaceChoice(), MEGABYTE, 1.0, apart=True).dtype == "float32"


def test_a_plan_halves_messages_on_a_thin_link_alone(chain: Chain, device: DeviceProfile) -> None:
    graph = chain(LAYERS)
    (wide,) = plan_of(graph, device).interfaces
    assert (wide.message, wide.nbytes) == ("float32", 256)
    assert "bf16" not in wide.reason
    halved, whole = (plan_of(graph, device, THIN, message=m) for m in ("auto", "fp32"))
    (interface,) = halved.interfaces
    assert (interface.message, interface.nbytes) == ("bfloat16", 128)
    assert interface.transfer_us == pytest.approx(5 + 12_800)
    assert "; bf16 messages: fp32 takes 25.6 ms on this link, a step" in interface.reason
    assert whole.interfaces[0].message == "float32"
    assert whole.prediction.step_us == pytest.approx(25_600)
    assert halved.prediction.step_us < 0.6 * whole.prediction.step_us
    (exact,) = plan_of(graph, device, THIN, gradient="exact").interfaces
    assert exact.message == "float32", "stages that wait gain little and should be exact"


def test_the_table_counts_the_bytes_on_the_way(chain: Chain, device: DeviceProfile) -> None:
    bytes_of = {}
    for message in ("fp32", "bf16"):
        decision = decision_of(chain(LAYERS), device, message=message, return_every=2)
        ours = next(a for a in decision.found if a.name == "decoupled")
        bytes_of[message] = ours.outcome.link_bytes
        stale = next(a for a in decision.found if a.name == "stale")
        assert stale.outcome.link_bytes[0][1] == 2 * ours.outcome.link_bytes[0][1]
    assert bytes_of == {"fp32": ((256, 128),), "bf16": ((128, 64),)}


def test_gradients_of_every_kth_batch_cost_a_kth(chain: Chain, device: DeviceProfile) -> None:
    graph = chain([1_000_000] * 8)
    every, fourth = (
        plan_of(graph, device, return_every=k, gradient="synthetic", width=4) for k in (1, 4)
    )
    (one,), (other,) = every.interfaces, fourth.interfaces
    assert (one.return_every, other.return_every) == (1, 4)
    assert one.head is not None and other.head is not None
    assert one.head.train_us == other.head.train_us, "of a step that learns"
    saved_us = [p.prediction.step_us for p in (every, fourth)]
    assert saved_us[1] < saved_us[0]
    (exact,) = plan_of(graph, device, return_every=4, gradient="exact").interfaces
    assert exact.return_every == 1, "what waits needs every gradient"


def test_a_plan_with_late_gradients(chain: Chain, device: DeviceProfile) -> None:
    graph = chain(LAYERS)
    keys = {"window": 3, "warmup": "exact"}
    plans = {g: plan_of(graph, device, gradient=g, **keys) for g in ("exact", "stale")}
    (interface,) = plans["stale"].interfaces
    assert (interface.gradient, interface.head, interface.window) == ("stale", None, 3)
    assert interface.reason.startswith("the true gradient, as late as the window")
    # Three batches more of activations and weights; and three slots more.
    costs = cost_model(graph, device)
    cut = next(i for i, op in enumerate(graph.operations) if op.module == "layers.4")
    each = sum(costs.activation_bytes[:cut]) + sum(costs.parameter_bytes[:cut])
    more = plans["stale"].stages[0].memory_bytes - plans["exact"].stages[0].memory_bytes
    assert more == 3 * each + 2 * 256
    assert plans["stale"].prediction.step_us < 0.7 * plans["exact"].prediction.step_us
    check_plan(plans["stale"])
    wrong = interface.model_copy(update={"return_every": 2})
    with pytest.raises(PartitionError, match="needs every gradient and gets one in 2"):
        check_plan(plans["stale"].model_copy(update={"interfaces": (wrong,)}))


def test_sources_say_whether_late_gradients_may_be_taken(
    chain: Chain, device: DeviceProfile
) -> None:
    """A head takes its time here; what late gradients cost in quality is not known."""
    graph, wide = chain(LAYERS), 4 * 10**6
    unasked = decision_of(graph, device, width=wide)
    stale = next(a for a in unasked.found if a.name == "stale")
    ours = next(a for a in unasked.found if a.name == "decoupled")
    assert stale.runs and not stale.eligible
    assert stale.samples_per_s > ours.samples_per_s
    assert (unasked.verdict.best, unasked.schedule.mode) == ("decoupled", "decoupled")

    alone = decision_of(graph, device, sources=("stale",))
    assert alone.chosen.decided is not None
    assert [f.gradient for f in alone.chosen.decided.interfaces] == ["stale"]
    assert alone.schedule.mode in ("decoupled", "stale")


def test_a_schedule_of_late_gradients_can_be_asked_for(chain: Chain, device: DeviceProfile) -> None:
    graph = chain(LAYERS)
    request = replace(PartitionRequest(2), schedule="stale")
    decision = decide(graph, cost_model(graph, device), request, LABELS)
    assert decision.chosen.name == "stale"
    assert decision.schedule.mode == "stale"
