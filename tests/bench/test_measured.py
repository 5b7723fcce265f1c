"""From what a run wrote to samples per second; from several rounds to ratios. Literal figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from dnic.bench.linkspec import LinkSpec
from dnic.bench.measured import Measured, measured
from dnic.bench.pace import FEWEST_LOCKED_STEPS, FEWEST_STEPS, MOST_STEPS, Pace
from dnic.bench.summary import summary
from dnic.bench.variant import Variant
from dnic.bench.wire import wire_bytes
from tests.report.conftest import make_plan, mlp_operations

DECOUPLED = Variant("decoupled", "decoupled", "decoupled", 2)
BACKPROP = Variant("backprop", "backprop", "backprop", 1, wired=False)


def row(step: int, mean_us: Sequence[float], samples: int = 80, **others: Any) -> dict[str, Any]:
    ranks = len(mean_us)
    return {
        "step": step,
        "samples": samples,
        "rank_step_us": [{"mean": us, "median": us - 10, "min": us - 20} for us in mean_us],
        "parts_us": [{"forward": us / 4, "wait": us / 2} for us in mean_us],
        "memory_bytes": [100 * step + rank for rank in range(ranks)],
        "sent_bytes": [600] * ranks,
        "in_flight_bytes": [32] * ranks,
    } | others


def test_the_slowest_rank_counts() -> None:
    found = measured([row(10, [1000.0, 500.0])], "decoupled")
    assert found.samples_per_s == pytest.approx(8 / 1000e-6)  # 80 samples in 10 steps
    assert found.median_samples_per_s == pytest.approx(8 / 990e-6)
    assert found.step_us == (1000.0, 500.0)
    assert found.sent_bytes == 120.0  # 600 of each rank in 10 steps
    assert found.in_flight_bytes == (32, 32)
    assert found.steps == 10


def test_the_ceiling_divides_the_work_evenly() -> None:
    found = measured([row(10, [1000.0, 500.0])], "alone")
    assert found.samples_per_s == pytest.approx(8 * 2 / 1500e-6)
    assert found.slowest_samples_per_s == pytest.approx(8 / 1000e-6)


def test_the_first_of_several_epochs_warms_up() -> None:
    rows = [row(4, [9000.0], 32), row(8, [100.0], 32), row(12, [300.0], 32)]
    found = measured(rows, "backprop")
    assert found.samples_per_s == pytest.approx(8 / 200e-6)
    assert found.parts_us == ({"forward": 50.0, "wait": 100.0},)
    assert found.memory_bytes == (1200,)
    assert found.steps == 12


def test_where_torch_sends_nothing_is_counted() -> None:
    found = measured([row(2, [5.0], sent_bytes=[None], in_flight_bytes=[None])], "gpipe")
    assert found.sent_bytes is None and found.in_flight_bytes is None


def speed(samples_per_s: float) -> Measured:
    one = measured([row(10, [1000.0])], "backprop")
    return replace(one, samples_per_s=samples_per_s)


def test_ratios_are_made_within_rounds() -> None:
    rounds = {
        "backprop": [speed(100), speed(50), speed(60)],  # the machine slows down
        "ceiling": [speed(200), speed(100), speed(120)],
        "decoupled": [speed(180), speed(90), speed(114)],
    }
    entry = summary(DECOUPLED, rounds, wire_bytes=7)
    assert entry["samples_per_s"] == 114
    assert (entry["min_samples_per_s"], entry["max_samples_per_s"]) == (90, 180)
    assert entry["ratio_to_one_core"] == pytest.approx(1.8)
    assert entry["ratio_to_ceiling"] == pytest.approx(0.9)
    assert entry["rounds"] == [180, 90, 114]
    assert (entry["wire_bytes_per_step"], entry["wire_bytes_counted"]) == (60.0, True)
    assert summary(DECOUPLED, {"decoupled": [speed(1)]}, 0)["ratio_to_ceiling"] is None
    once = summary(DECOUPLED, rounds | {"decoupled": [speed(150)]}, 0)
    assert (once["ratio_to_one_core"], once["rounds"]) == (pytest.approx(1.5), [150])


def test_bytes_of_a_step_by_the_plan() -> None:
    plan = make_plan("Net", mlp_operations(6), (11,))
    (interface,) = plan.interfaces
    assert interface.nbytes == 4 * 256 * 256
    there, targets = interface.nbytes, 8 * 256
    for mode, processes, expected in (
        ("1f1b", 2, 2 * there + targets),
        ("ddp", 2, 2 * plan.model.parameter_bytes),
        ("ddp", 4, 6 * plan.model.parameter_bytes),
    ):
        assert wire_bytes(Variant("v", "v", mode, processes), plan) == expected  # type: ignore[arg-type]
    assert wire_bytes(BACKPROP, plan) == 0


def test_steps_fill_the_seconds() -> None:
    pace = Pace(3.0, LinkSpec(20_000.0, 1e6))
    pace.first(replace(speed(1), step_us=(100_000.0,), steps=8))
    assert pace.steps(BACKPROP, 0) == 30
    # Half the work, and 1.45 s for half of the bytes: no fewer steps than can be measured.
    assert pace.steps(DECOUPLED, 2_900_000) == FEWEST_STEPS
    assert pace.steps(DECOUPLED, 100_000) == 30
    # A way that waits is taken to need two round trips more, 80 ms.
    naive = Variant("naive", "naive", "exact", 2)
    assert pace.steps(naive, 100_000) == 17
    assert pace.steps(naive, 2_900_000) == FEWEST_LOCKED_STEPS
    pace.note(DECOUPLED, replace(speed(1), step_us=(1000.0, 20_000.0), steps=30), 30)
    assert pace.steps(DECOUPLED, 0) == 150
    assert pace.options(150) == ["--epochs=1", "--max-steps=150"]
    pace.note(DECOUPLED, replace(speed(1), step_us=(1.0,), steps=70), 150)
    assert pace.options(150) == ["--epochs=3"]
    assert pace.steps(DECOUPLED, 0) == MOST_STEPS
