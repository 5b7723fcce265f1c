"""Heads and links: sizes by hand."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from dnic.cost import (
    HeadCost,
    Link,
    TargetSize,
    head_cost,
    head_features,
    head_time,
    load_profile,
    message_us,
    occupancy_us,
    time_head,
    transfer_us,
)
from dnic.cost.kept import KeptTimes
from dnic.graph.graph import Value
from dnic.runtime.heads import HeadSpec, build_head

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


def test_a_tail_by_hand() -> None:
    """Arithmetic only: 64 -> 8 -> 10 classes for each of 7 positions, 20 samples."""
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e6, "bytes_per_s": 1e30})
    target = TargetSize((7,), 10)
    forward_us = 2 * 20 * 7 * (64 * 8 + 8 * 10)
    local = head_cost([value("B", 7, 64)], 20, 1, 8, device, target, "local")
    virtual = head_cost([value("B", 7, 64)], 20, 1, 8, device, target, "virtual")
    assert local.forward_us == virtual.forward_us == pytest.approx(3 * forward_us)
    assert local.train_us == pytest.approx(0)
    assert virtual.train_us == pytest.approx(6 * forward_us)
    assert local.parameters == virtual.parameters == 2 * 64 + (64 + 1) * 8 + (8 + 1) * 10


def test_a_tail_sees_the_mean_where_one_target_stands_for_a_sample() -> None:
    device = CPU.model_copy(update={"overhead_us": 0.0, "flops_per_s": 1e6, "bytes_per_s": 1e30})
    one = head_cost([value("B", 64, 9, 9)], 20, 0, None, device, TargetSize((), 10), "local")
    assert one.forward_us == pytest.approx(3 * 2 * 20 * 64 * 10)
    regression = head_cost([value("B", 64)], 20, 0, None, device, TargetSize((3, 5), None), "local")
    assert regression.forward_us == pytest.approx(3 * 2 * 20 * 64 * 15)
    blind = head_cost([value("B", 64)], 20, 0, 8, device, None, "local")
    assert blind.forward_us == pytest.approx(3 * 2 * 20 * 64 * 8)


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
    virtual = time_head([value("B", 8)], 4, 1, 8, CPU, source="virtual", kept=kept)
    assert virtual == head_cost([value("B", 8)], 4, 1, 8, CPU, source="virtual")


def test_links() -> None:
    link = Link(bandwidth_bytes_per_s=1e6, latency_us=40)
    assert occupancy_us(500, link) == 500
    assert transfer_us(500, link) == 540
    assert transfer_us(0, link) == 40
    device = CPU.model_copy(update={"message_bytes_per_s": 1e6, "overhead_us": 3.0})
    assert message_us(500, device) == 503
    assert message_us(0, device) == 0
