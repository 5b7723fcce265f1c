"""The predicted timeline, and the trace that shows it beside what was measured."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dnic.bench.timeline import predicted, write_trace
from dnic.runtime.laps import write_laps
from dnic.runtime.stopwatch import Lap
from tests.report.conftest import make_plan, mlp_operations


def test_stages_do_their_parts_in_the_engines_order() -> None:
    plan = make_plan("Net", mlp_operations(6), (11,))
    laps = predicted(plan, steps=4)
    assert laps.keys() == {0, 1}
    first = ["forward", "send", "head", "backward", "take", "update, messages", "learn"]
    assert [lap.part for lap in laps[0]] == first * 4
    last = ["receive", "forward", "backward", "send back", "update, messages"]
    assert [lap.part for lap in laps[1]] == last * 4
    for stage, rank in zip(plan.stages, laps.values(), strict=True):
        assert all(lap.wait_s <= lap.end_s - lap.start_s for lap in rank)
        lengths = [lap.end_s - lap.start_s for lap in rank if lap.part == "backward"]
        assert lengths == pytest.approx([stage.backward_us / 1e6] * 4)


def test_the_faster_stage_waits_for_the_slower_one() -> None:
    plan = make_plan("Net", mlp_operations(6), (4,))  # most of the work is in the second stage
    laps = predicted(plan, steps=10)
    waited = [sum(lap.wait_s for lap in rank) for rank in laps.values()]
    assert waited[0] > 0 and waited[1] == pytest.approx(0, abs=1e-9)
    ends = [rank[-1].end_s - rank[0].start_s for rank in laps.values()]
    assert ends[0] == pytest.approx(ends[1], rel=0.05)


def test_a_stage_that_waits_for_its_gradient() -> None:
    plan = make_plan("Net", mlp_operations(6), (11,), ["exact"])
    laps = predicted(plan, steps=2)[0]
    assert [lap.part for lap in laps[:4]] == ["forward", "send", "head", "backward"]
    other = plan.stages[1].forward_us + plan.stages[1].backward_us
    there_and_back = 2 * plan.interfaces[0].transfer_us
    assert laps[2].wait_s == pytest.approx((other + there_and_back) / 1e6)


def test_a_trace_that_perfetto_reads(tmp_path: Path) -> None:
    plan = make_plan("Net", mlp_operations(6), (11,))
    laps = tmp_path / "laps"
    write_laps(laps / "ddp", 0, [Lap("forward", 5.0, 5.002, 0.0), Lap("take", 5.002, 5.004, 0.001)])
    write_laps(laps / "ddp", 1, [Lap("forward", 5.001, 5.003, 0.0)])
    write_trace(tmp_path / "trace.json", laps, ["ddp"], plan)
    trace = json.loads((tmp_path / "trace.json").read_text())
    events = [event for event in trace["traceEvents"] if event["pid"] == 0]
    names = [event["args"]["name"] for event in events if event["ph"] == "M"]
    assert names == ["ddp", "rank 0", "rank 1"]
    slices = [(e["name"], e["ts"], e["dur"], e["tid"]) for e in events if e["ph"] == "X"]
    assert slices == [
        ("forward", 0.0, 2000.0, 0),
        ("take", 2000.0, 2000.0, 0),
        ("wait", 2000.0, 1000.0, 0),
        ("forward", 1000.0, 2000.0, 1),
    ]
    others = {e["args"]["name"] for e in trace["traceEvents"] if e["ph"] == "M" and e["pid"] == 1}
    assert others == {"decoupled, predicted", "rank 0", "rank 1"}
