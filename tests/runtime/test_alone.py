"""Stages by themselves, for measuring; and the laps of a run, kept for pictures."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dnic.errors import RuntimeFault
from dnic.runtime.laps import TRACED_STEPS, read_laps, write_laps
from dnic.runtime.record import read_record
from dnic.runtime.stopwatch import Stopwatch

Make = Callable[..., Path]
Run = Callable[..., Any]
PARTS = {"data", "forward", "backward", "update", "rest"}


@pytest.mark.processes
@pytest.mark.parametrize(("kind", "processes"), [("conv2", 2), ("skip3", 3)])
def test_every_stage_runs_by_itself(
    bundle: Make, run_ranks: Run, kind: str, processes: int, tmp_path: Path
) -> None:
    folder = bundle(kind)
    run_ranks(folder, processes, "--mode=alone", f"--record={tmp_path / 'record'}")
    result = json.loads((folder / "runs/alone/result.json").read_text())
    assert result["steps"] == 14
    assert len(result["rank_step_us"]) == processes
    assert all(step["mean"] > 0 for step in result["rank_step_us"])
    assert [set(parts) for parts in result["parts_us"]] == [PARTS] * processes
    assert result["sent_bytes"] == [0] * processes
    # Nothing of it is worth keeping, but every stage did train on what was made up.
    assert "test_loss" not in result and not (folder / "runs/alone/checkpoints").exists()
    record = read_record(tmp_path / "record")
    assert len(record.losses) == 14 and not record.heads
    for name, before in load_file(folder / "init.safetensors").items():
        after = record.parameters[name]
        assert after.isfinite().all()
        assert not (name.endswith("weight") and torch.equal(after, before)), name


@pytest.mark.processes
def test_laps_of_the_last_steps(bundle: Make, run_ranks: Run, tmp_path: Path) -> None:
    folder = bundle("mlp2")
    run_ranks(folder, 2, f"--trace={tmp_path / 'laps'}", "--epochs=1")
    laps = read_laps(tmp_path / "laps")
    assert list(laps) == [0, 1]
    for rank in laps.values():
        parts = [lap.part for lap in rank]
        step = parts[: parts.index("rest") + 1]
        assert parts == step * 7 and {"forward", "backward", "update"} < set(step)
        for lap, following in pairwise(rank):
            assert lap.start_s <= lap.end_s == following.start_s
    # One clock: the second stage cannot receive before the first one has sent.
    sent = next(lap for lap in laps[0] if lap.part == "send")
    received = next(lap for lap in laps[1] if lap.part == "receive")
    assert received.end_s >= sent.start_s


def test_only_the_last_steps_are_kept(tmp_path: Path) -> None:
    watch = Stopwatch(keep=2)
    for step in range(5):
        watch.lap(f"part {step}")
        watch.tick()
    assert [lap.part for lap in watch.laps] == ["part 3", "rest", "part 4", "rest"]
    assert Stopwatch().laps == [] and TRACED_STEPS >= 50
    write_laps(tmp_path, 3, watch.laps)
    assert read_laps(tmp_path) == {3: watch.laps}
    with pytest.raises(RuntimeFault, match="there are no laps here"):
        read_laps(tmp_path / "nowhere")
