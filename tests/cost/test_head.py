"""Heads and links: sizes by hand."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from math import log
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dnic.cost import (
    HeadCost,
    Link,
    TailChoice,
    TargetSize,
    head_cost,
    head_features,
    head_time,
    load_profile,
    message_us,
    needs_gradients,
    occupancy_us,
    time_head,
    transfer_us,
)
from dnic.cost.kept import KeptTimes
from dnic.graph.graph import Value
from dnic.runtime.heads import HeadSpec, build_head
from dnic.runtime.plan import HeadPlan, TargetPlan, TensorSpec
from dnic.runtime.predictor import PredictionStatistics, Predictor
from dnic.runtime.registry import PredictorRequest, predictor_kind, register
from dnic.runtime.tail_sampled import DRAWN

CPU = load_profile("cpu-core")


def value(*shape: int | str) -> Value:
    return Value("h", shape, "float32", 0, True)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        (("B", 64), 64),
        (("B", 7, 64), 64),
        (("B", 64, 5, 9), 64),
        (("7*B", 64), 64),
        (("B", 14, 14, 64), 64),
        (("B", 64, 2, 5, 5), 64),
        (("B",), 1),
    ],
)
def test_features(shape: tuple[int | str, ...], expected: int) -> None:
    assert head_features(value(*shape)) == expected


SAMPLES = [(), (64,), (7, 64), (64, 256), (8, 8, 8), (64, 32, 40), (14, 14, 384), (3, 2, 40, 40, 5)]
TARGETS = [
    None,
    TargetSize((), 10),
    TargetSize((64,), 50),
    TargetSize((7,), 5),
    TargetSize((2, 3), 5),
    TargetSize((), None),
    TargetSize((64, 3), None),
    TargetSize((5000,), None),
    TargetSize((32, 40), 7),
    TargetSize((32, 40), None),
    TargetSize((3, 32, 40), None),
    TargetSize((14, 14, 2), None),
]


@pytest.mark.parametrize("sample", SAMPLES)
@pytest.mark.parametrize("target", TARGETS)
def test_parameters_are_those_of_the_real_head(
    sample: tuple[int, ...], target: TargetSize | None
) -> None:
    for hidden_layers in range(4):
        for width in (None, 8):
            spec = HeadSpec(hidden_layers, width, "none" if target is None else "target")
            dtype = None
            if target is not None:
                dtype = torch.float32 if target.classes is None else torch.int64
            real = build_head(
                sample,
                torch.float32,
                spec,
                target and target.classes,
                target and target.shape,
                dtype,
            )
            cost = head_cost([value("B", *sample)], 4, hidden_layers, width, CPU, target)
            assert cost.parameters == sum(p.numel() for p in real.parameters())


def test_times_by_hand() -> None:
    """Arithmetic only: 2 * 10 * 64 * 64 FLOPs forward, three times that to train."""
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e6, "bytes_per_s": 1e30})
    full = head_cost([value("B", 64)], 10, 0, None, device)
    assert full.forward_us == pytest.approx(2 * 10 * 64 * 64)
    assert full.train_us == pytest.approx(3 * 2 * 10 * 64 * 64)
    assert full.total_us == full.forward_us + full.train_us
    narrow = head_cost([value("B", 64)], 10, 2, 8, device)
    assert narrow.forward_us == pytest.approx(2 * 10 * (64 * 8 + 8 * 8 + 8 * 64))
    # Positions share one map; a coarse map of 4 x 4 cells stands beside it.
    maps = head_cost([value("B", 64, 32, 40)], 10, 1, 8, device)
    shared, coarse = 2 * 10 * 32 * 40 * 2 * 64 * 8, 2 * 10 * 2 * 64 * 16 * 8
    assert maps.forward_us == pytest.approx(3 * shared + coarse)


def test_learning_from_fewer_samples_by_hand() -> None:
    """Arithmetic and walks are divided, Adam's step and starting operations are not."""
    device = CPU.model_copy(update={"overhead_us": 3.0, "bytes_per_s": 1e30})
    costs = [head_cost([value("B", 64)], 16, 1, 8, device, one_in=n) for n in (1, 2, 4)]
    saved = [a.train_us - b.train_us for a, b in itertools.pairwise(costs)]
    assert saved[0] == pytest.approx(2 * saved[1])
    assert saved[0] > 0
    assert len({cost.forward_us for cost in costs}) == 1
    assert costs[2].train_us > 3.0 * 20


def test_each_tensor_has_a_head_of_its_own() -> None:
    one, other = value("B", 64), value("B", 16)
    both = head_cost([one, other], 10, 1, 8, CPU)
    apart = head_cost([one], 10, 1, 8, CPU) + head_cost([other], 10, 1, 8, CPU)
    assert both == apart
    assert both.parameters == 64 * 8 + 8 + 8 * 64 + 64 + 16 * 8 + 8 + 8 * 16 + 16
    assert both.forward_us > head_cost([one], 10, 1, 8, CPU).forward_us


def test_gradients_that_come_over_the_link_cost_no_head() -> None:
    for source in ("exact", "stale"):
        assert head_cost([value("B", 64)], 10, 1, 8, CPU, None, source) == HeadCost()


def reached(narrowest: int) -> float:
    """The share of the peak that a product with so narrow a side reaches."""
    return narrowest / (narrowest + 16)


def test_a_tail_by_hand() -> None:
    """Arithmetic only: 64 -> 8 -> 10 classes for each of 7 positions, 20 samples."""
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e6, "bytes_per_s": 1e30})
    target = TargetSize((7,), 10)
    forward_us = 2 * 20 * 7 * (64 * 8 + 8 * 10) / reached(8)
    given = [value("B", 7, 64)], 20, 1, 8, device, target
    local, virtual = (head_cost(*given, source) for source in ("local", "virtual"))
    assert virtual.forward_us == pytest.approx(2 * forward_us)
    assert virtual.train_us == pytest.approx(6 * forward_us)
    assert local.forward_us == pytest.approx(3 * forward_us)
    assert local.train_us == pytest.approx(0)
    assert local.parameters == virtual.parameters == 2 * 64 + (64 + 1) * 8 + (8 + 1) * 10
    part = head_cost(*given, "local", one_in=4)
    assert (part.forward_us, part.train_us) == pytest.approx((2 * forward_us, forward_us / 2))
    assert head_cost(*given, "none") == HeadCost()


def test_a_tail_sees_cells_where_one_target_stands_for_a_sample() -> None:
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e6, "bytes_per_s": 1e30})
    one = head_cost([value("B", 64, 9, 9)], 20, 0, None, device, TargetSize((), 10), "local")
    assert one.forward_us == pytest.approx(3 * 2 * 20 * 64 * 16 * 10 / reached(10))
    regression = head_cost([value("B", 64)], 20, 0, None, device, TargetSize((3, 5), None), "local")
    assert regression.forward_us == pytest.approx(3 * 2 * 20 * 64 * 15 / reached(15))


def test_a_sample_of_many_classes_costs_what_is_drawn() -> None:
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e6, "bytes_per_s": 1e30})
    given = [value("B", 64, 128)], 8, 0, None, device, TargetSize((64,), 50_000), "local"
    sampled = head_cost(*given)
    full = head_cost(*given, tail=TailChoice(targets="full"))
    drawn = DRAWN + 1
    assert sampled.forward_us == pytest.approx(3 * 2 * 8 * 64 * 128 * drawn / reached(128))
    assert full.forward_us == pytest.approx(3 * 2 * 8 * 64 * 128 * 50_000 / reached(128))
    assert full.parameters == sampled.parameters
    # 8 x 64 targets and those that are drawn, a bias each; what standardises 128 features.
    assert sampled.averaged_bytes == 4 * ((512 + DRAWN) * 129 + 2 * 128)
    assert full.averaged_bytes == 4 * full.parameters


def test_clusters_by_hand() -> None:
    """128 features, 5,000 classes: 512 and a cluster at once, 4,488 behind 32 features."""
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e6, "bytes_per_s": 1e30})
    given = [value("B", 64, 128)], 8, 0, None, device, TargetSize((64,), 5000), "local"
    clustered = head_cost(*given, tail=TailChoice(targets="clustered"))
    there = 1 - log(513) / log(5001)
    behind = 128 * 32 / reached(32) + 32 * 4488 / reached(32)
    expected = 3 * 2 * 8 * 64 * (128 * 513 / reached(128) + there * behind)
    assert clustered.forward_us == pytest.approx(expected)
    assert clustered.parameters == 2 * 128 + 129 * 513 + 128 * 32 + 32 * 4488


def test_walks_by_hand() -> None:
    """Memory only: a flat activation, a softmax of 10 for each row, what is observed."""
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e30, "bytes_per_s": 8e6})
    given = [value("B", 64)], 20, 0, None, device, TargetSize((), 10)
    products = (20 * (64 + 10) + 65 * 10) / 2
    adam = 5 * 650 / 2
    virtual, local = (head_cost(*given, source) for source in ("virtual", "local"))
    assert virtual.forward_us == pytest.approx(2 * products + 8 * 20 * 64 + 20 * (7 * 10 + 1000))
    learning = 6 * products + 41 * 20 * 64 + 20 * (45 * 10 + 1600)
    assert virtual.train_us == pytest.approx(learning + adam)
    assert local.train_us == pytest.approx(10 * 20 * 64 + adam)
    # Statistics are not taken from more than they need.
    wide = [value("B", 64, 32, 32)], 32, 0, None, device, TargetSize((), 10), "local"
    assert head_cost(*wide).train_us == pytest.approx(10 * 2**18 + 5 * (1024 * 10 + 10) / 2)


def test_a_softmax_that_no_cache_holds_takes_longer_on_a_cpu() -> None:
    """32 MiB of logits: 18 walks more there and back, 35 more in learning a match."""
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e30, "bytes_per_s": 8e6})
    gpu = device.model_copy(update={"memory_bytes": 2**40})
    for rows, more in ((2**8, 0), (2**9, 1)):
        given = [value("B", 64)], rows, 0, None
        last = TargetSize((), 2**14), "virtual", 1, TailChoice(targets="full")
        ours, theirs = (head_cost(*given, one, *last) for one in (device, gpu))
        assert ours.forward_us - theirs.forward_us == pytest.approx(more * 18 * rows * 2**14)
        assert ours.train_us - theirs.train_us == pytest.approx(more * 35 * rows * 2**14)


def test_what_narrow_tails_start_by_hand() -> None:
    """Overhead only."""
    device = CPU.model_copy(update={"overhead_us": 1.0, "flops_per_s": 1e30, "bytes_per_s": 1e30})
    for layers, starts in ((0, (65, 215)), (2, (115, 425))):
        given = [value("B", 64)], 20, layers, 8, device, TargetSize((), 10), "virtual"
        cost = head_cost(*given)
        assert cost.forward_us == pytest.approx(starts[0])
        assert cost.train_us == pytest.approx(starts[1] + 0.7 * (4 + 2 * max(layers - 1, 0)))


TAILED = [
    [value("B", 64)],
    [value("B", 7, 64)],
    [value("B", 64, 100)],
    [value("B", 8, 8, 8)],
    [value("B", 64, 32, 40)],
    [value("B", 5000)],
    [value("3*B", 64, 40, 32)],
    [value(7, "B", 64)],
    [value("B", 20, 32), value("B", 7, 32)],
    [value("B", 16), value("B", 64, 16, 16)],
    [value(64, 100), value("B", 7, 64)],
]
AIMS = [
    TargetSize((), 10),
    TargetSize((7,), 5),
    TargetSize((7,), 3000),
    TargetSize((2, 3), 5),
    TargetSize((64,), 50),
    TargetSize((), None),
    TargetSize((64, 3), None),
    TargetSize((5000,), None),
    TargetSize((32, 40), 7),
    TargetSize((3, 32, 40), None),
]


@pytest.mark.parametrize("values", TAILED)
def test_parameters_are_those_of_the_real_tail(values: list[Value]) -> None:
    tensors = tuple(TensorSpec(v.name, v.shape, v.dtype, True) for v in values)
    clustered = HeadPlan(options={"targets": "clustered"}).options
    for target, (layers, width) in itertools.product(AIMS, [(0, None), (0, 8), (1, 8), (3, 8)]):
        planned = TargetPlan(target.shape, "int64" if target.classes else "float32", target.classes)
        for options in ({}, clustered) if target.classes else ({},):
            request = PredictorRequest(tensors, HeadPlan(layers, width, options=options), planned)
            real = predictor_kind("local").build(request)
            tail = TailChoice(**options)
            cost = head_cost(values, 4, layers, width, CPU, target, "local", tail=tail)
            assert cost.parameters == sum(p.numel() for p in real.parameters().values())


def test_a_tail_that_ends_in_the_models_output() -> None:
    choice = TailChoice(loss="model", output=("B", 7, 50))
    cost = head_cost(
        [value("B", 7, 64)], 4, 0, None, CPU, TargetSize((7,), 50), "local", tail=choice
    )
    assert cost.parameters == 2 * 64 + 65 * 50


@pytest.mark.parametrize("target", [None, TargetSize((), 10), TargetSize((3,), None)])
def test_real_heads_are_timed_once(
    target: TargetSize | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_time, "_BUDGET_US", 500.0)
    path, before = tmp_path / "times.json", torch.get_rng_state()
    crossing = [value("B", 64), value("B", 6, 8, 8)]
    args = (crossing, 4, 1, 8, CPU, target)
    cost = time_head(*args, kept=KeptTimes(path=path))
    assert cost.parameters == head_cost(*args).parameters
    assert cost.forward_us > 0
    assert cost.train_us > 0
    assert torch.equal(torch.get_rng_state(), before)
    monkeypatch.setattr(head_time, "_time", None)
    assert time_head(*args, kept=KeptTimes(path=path)) == cost


def test_heads_that_cannot_be_built_are_computed(tmp_path: Path) -> None:
    whole = Value("h", ("B", 8), "int64", 0, True)
    kept = KeptTimes(path=tmp_path / "times.json")
    assert time_head([whole], 4, 1, 8, CPU, kept=kept) == head_cost([whole], 4, 1, 8, CPU)
    choice = TailChoice(loss="model", output=("B", 3))
    given = [value("B", 8)], 4, 1, 8, CPU, TargetSize((), 3)
    virtual = time_head(*given, source="virtual", kept=kept, tail=choice)
    assert virtual == head_cost(*given, source="virtual", tail=choice)
    assert time_head(*given, source="nobody_knows", kept=kept) == head_cost(*given)


@register("of_a_test", needs_gradients=False)
class OfATest(Predictor):
    def __init__(self, request: PredictorRequest) -> None:
        self.weight = torch.zeros(5, len(request.tensors))

    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        return [torch.zeros_like(tensor) for tensor in tensors]

    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        assert gradients is None
        return None

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

    def parameters(self) -> dict[str, Tensor]:
        return {"weight": self.weight}


@pytest.mark.parametrize(("source", "parameters"), [("virtual", 65 * 10), ("of_a_test", 5)])
def test_any_source_is_built_and_timed(
    source: str, parameters: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(head_time, "_BUDGET_US", 500.0)
    kept = KeptTimes(path=tmp_path / "times.json")
    one = time_head([value("B", 64)], 4, 0, None, CPU, TargetSize((), 10), source, kept=kept)
    assert one.forward_us > 0
    assert one.train_us > 0
    assert one.parameters == parameters
    assert needs_gradients(source) is (source == "virtual")


def test_links() -> None:
    link = Link(bandwidth_bytes_per_s=1e6, latency_us=40)
    assert occupancy_us(500, link) == 500
    assert transfer_us(500, link) == 540
    assert transfer_us(0, link) == 40
    device = CPU.model_copy(update={"message_bytes_per_s": 1e6, "overhead_us": 3.0})
    assert message_us(500, device) == 503
    assert message_us(0, device) == 0
