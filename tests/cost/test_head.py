"""Heads and links: sizes by hand, and the width against its definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.cost import (
    DeviceProfile,
    HeadCost,
    Link,
    TargetSize,
    choose_width,
    head_cost,
    head_features,
    head_time,
    load_profile,
    message_us,
    occupancy_us,
    stage_slack_us,
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


def test_each_tensor_has_a_head_of_its_own() -> None:
    one, other = value("B", 64), value("B", 16)
    both = head_cost([one, other], 10, 1, 8, CPU)
    apart = head_cost([one], 10, 1, 8, CPU) + head_cost([other], 10, 1, 8, CPU)
    assert both == apart
    assert both.parameters == 64 * 8 + 8 + 8 * 64 + 64 + 16 * 8 + 8 + 8 * 16 + 16
    assert both.forward_us > head_cost([one], 10, 1, 8, CPU).forward_us


def width_for(slack_us: float, *shape: int | str, profile: DeviceProfile = CPU) -> int | None:
    return choose_width([value(*shape)], 256, 1, slack_us, profile)


def test_the_width_grows_with_the_slack_up_to_its_limits() -> None:
    widths = [width_for(slack, "B", 1024) for slack in (0, 1500, 3000, 6000, 12000, 1e9)]
    assert widths == sorted(w for w in widths if w)
    assert (widths[0], widths[-1]) == (16, 256)
    assert len(set(widths)) > 3
    assert width_for(1e9, "B", 100) == 64
    assert width_for(1e9, "B", 17) == 16
    assert width_for(1e9, "B", 16) is None
    assert width_for(1e9, "B") is None


def test_overhead_alone_narrows_nothing() -> None:
    slow_start = CPU.model_copy(update={"overhead_us": 1e6})
    assert width_for(3000, "B", 1024, profile=slow_start) == width_for(3000, "B", 1024)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(17, 2000),
    st.integers(1, 512),
    st.integers(0, 3),
    st.floats(0, 1e5),
    st.none() | st.integers(2, 1000),
)
def test_the_width_is_the_widest_that_fits(
    features: int, batch_size: int, hidden_layers: int, slack_us: float, classes: int | None
) -> None:
    target = None if classes is None else TargetSize((), classes)
    crossing = [value("B", features)]
    width = choose_width(crossing, batch_size, hidden_layers, slack_us, CPU, target)

    def fits(candidate: int) -> bool:
        costs = [
            head_cost(crossing, batch_size, hidden_layers, w, CPU, target).total_us
            for w in (16, candidate)
        ]
        return costs[1] - costs[0] <= slack_us

    allowed = [w for w in (16, 32, 64, 128, 256) if w <= features and fits(w)]
    assert width == max(allowed, default=16)


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


def test_slack_is_a_share_or_what_is_idle() -> None:
    assert stage_slack_us(1000, 1000) == 50
    assert stage_slack_us(1000, 1020) == 50
    assert stage_slack_us(1000, 1400) == 400


def test_links() -> None:
    link = Link(bandwidth_bytes_per_s=1e6, latency_us=40)
    assert occupancy_us(500, link) == 500
    assert transfer_us(500, link) == 540
    assert transfer_us(0, link) == 40
    device = CPU.model_copy(update={"message_bytes_per_s": 1e6, "overhead_us": 3.0})
    assert message_us(500, device) == 503
    assert message_us(0, device) == 0
