"""From a spec to what the partition is asked: devices of several sorts, links, schedules."""

from __future__ import annotations

import pytest

from dnic.asked import _scheduler_again
from dnic.compiler.ask import device_profile, is_gpu, measures, request_of, training_of
from dnic.cost import load_profile
from dnic.graph.graph import Graph, Operation
from dnic.spec import Spec, spec_from_mapping


def spec(**sections: object) -> Spec:
    return spec_from_mapping(dict(sections), "test")


@pytest.fixture
def graph() -> Graph:
    """One operation that only computes: how fast it runs is how fast the device computes."""
    operations = (
        Operation("x", "input", "x"),
        Operation("layer", "module", "layer", inputs=("x",), forward_flops=10**15),
        Operation("output", "output", "output", inputs=("layer",)),
    )
    return Graph("Net", 4, operations)


def test_how_to_train_reaches_the_plan_and_comes_back() -> None:
    scheduler = {
        "name": "SequentialLR",
        "milestones": [2],
        "schedulers": [{"name": "LinearLR", "total_iters": 2}, {"name": "StepLR", "step_size": 1}],
        "interval": "step",
    }
    given = {"clip_norm": 0.5, "precision": "bf16", "recompute": [1], "compile": True}
    training = training_of(spec(train={"scheduler": scheduler, **given}), 8)
    assert training.scheduler is not None
    assert training.scheduler.options["schedulers"][1] == {
        "name": "StepLR",
        "options": {"step_size": 1},
    }
    assert (training.clip_norm, training.precision) == (0.5, "bf16")
    assert (training.recompute, training.compile) == ((1,), True)
    assert _scheduler_again(training.scheduler) == scheduler
    assert _scheduler_again(training_of(spec(), 8).scheduler) is None


def test_groups_become_sorts_of_devices(graph: Graph) -> None:
    asked = spec(
        devices={
            "groups": [
                {"count": 2, "profile": "A100-80GB"},
                {"count": 4, "profile": "RTX-4090", "speed": 0.5, "memory": "20GiB"},
            ],
            "links": {
                "default": {"bandwidth": "1Gbit/s", "latency": "20ms"},
                "between": [{"groups": [0, 1], "bandwidth": "10Gbit/s", "latency": "1ms"}],
            },
        }
    )
    profile = device_profile(asked)
    assert profile == load_profile("A100-80GB")
    request = request_of(asked, profile, graph)
    first, second = request.sorts
    assert request.devices == 6
    assert (first.count, first.speed, first.memory_bytes) == (2, 1.0, profile.memory_bytes)
    other = load_profile("RTX-4090")
    assert second.speed == pytest.approx(0.5 * other.flops_per_s / profile.flops_per_s, rel=0.05)
    assert second.memory_bytes == 20 * 2**30
    assert request.link(0, 1, profile.link).latency_us == 1000.0
    assert request.link(0, 0, profile.link) == profile.link
    assert request.link(1, 1, profile.link) == other.link
    assert request.overlap == 1.0 and not request.crowded


def test_devices_that_are_alike(graph: Graph) -> None:
    asked = spec(devices={"count": 3, "profile": "cpu-core"})
    request = request_of(asked, device_profile(asked), graph)
    (sort,) = request.sorts
    assert (sort.count, sort.speed, sort.memory_bytes) == (3, 1.0, None)
    assert request.crowded and request.overlap == 0.0
    assert request.free


@pytest.mark.parametrize(
    "partition",
    [{"schedule": "1f1b"}, {"stages": 2}, {"cuts": ["a"]}],
    ids=["schedule", "stages", "cuts"],
)
def test_who_says_how_is_not_free(partition: dict[str, object], graph: Graph) -> None:
    asked = spec(devices={"count": 2, "profile": "cpu-core"}, partition=partition)
    assert not request_of(asked, device_profile(asked), graph).free


def test_penalties_sources_and_limits(graph: Graph) -> None:
    asked = spec(
        devices={"count": 2, "profile": "cpu-core"},
        partition={"max_decoupled_interfaces": 1, "replicas": 2, "microbatches": 8},
        interfaces={
            "default": {"penalty": {"synthetic": 0.05}},
            "layer": {"sources": ["exact", "synthetic"]},
        },
    )
    request = request_of(asked, device_profile(asked), graph)
    assert (request.max_decoupled, request.replicas, request.microbatches) == (1, 2, 8)
    assert request.default.penalty_of("synthetic") == 0.05
    assert request.choices["layer"].sources == ("exact", "synthetic")
    assert request.choices["layer"].penalty_of("synthetic") == 0.05
    assert request.default.sources == ("synthetic", "virtual", "local", "stale")


@pytest.mark.parametrize(
    ("devices", "meta", "measured"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"profile": "cpu-core"}, False, False),
        ({"groups": [{"profile": "H100"}]}, False, False),
        ({"groups": [{"count": 2}]}, False, True),
        ({"profile": "cpu-core", "costs": "measured"}, False, True),
        ({"costs": "analytic"}, False, False),
    ],
)
def test_what_is_measured(devices: dict[str, object], meta: bool, measured: bool) -> None:
    assert measures(spec(devices=devices, model={"meta": meta})) is measured


def test_gpus() -> None:
    gpu, cpu = load_profile("H100"), load_profile("cpu-core")
    assert is_gpu(spec(), gpu) and not is_gpu(spec(), cpu)
    assert is_gpu(spec(devices={"kind": "cuda"}), cpu)
    assert not is_gpu(spec(devices={"kind": "cpu"}), gpu)
