"""Records of epochs, live figures and what a person sees of them."""

from __future__ import annotations

import io
import json
import time
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from dnic.runtime.board import Board
from dnic.runtime.metrics import (
    EpochFigures,
    LiveFigures,
    MetricsFile,
    merged,
    read_metrics,
    replace_text,
)
from dnic.runtime.progress import Progress, line
from dnic.runtime.stopwatch import Stopwatch

ROW = {"cosine": 0.5, "lateness": 2.0}


def test_an_epoch_is_as_long_as_its_slowest_rank() -> None:
    first = EpochFigures(30, 2.0, 0.5, interfaces={"cut": ROW}).to_json(last=False)
    last = EpochFigures(30, 3.0, 0.0, torch.tensor(60.0)).to_json(last=True)
    record = merged([first, last])
    assert record["train_loss"] == 2.0
    assert record["samples_per_s"] == 10.0
    assert record["interfaces"] == {"cut": ROW}
    assert record["waited_share"] == [0.25, 0.0]
    unknown = EpochFigures(30, 3.0, None).to_json(last=True)
    assert merged([first, unknown])["waited_share"] == [0.25, None]
    assert len(record["memory_bytes"]) == 2


def test_the_slowest_rank_sets_the_step() -> None:
    quick, slow = ({"median": us, "min": us, "mean": us} for us in (1.0, 2.0))
    ranks = [EpochFigures(step_us=step).to_json(last=False) for step in (quick, slow, None)]
    assert merged(ranks)["step_us"] == slow
    assert merged(ranks[2:])["step_us"] is None


@pytest.mark.parametrize(
    ("steps_s", "expected_us"),
    [
        ([], None),
        ([1e-6, 2e-6], {"median": 1.5, "min": 1.0, "mean": 1.5}),
        ([3e-6] * 5 + [9e-6], {"median": 3.0, "min": 3.0, "mean": 4.5}),
        ([9e-6] * 2 + [1e-6, 2e-6, 2e-6, 7e-6], {"median": 2.0, "min": 1.0, "mean": 3.0}),
    ],
)
def test_steps_but_the_first_ones(
    monkeypatch: pytest.MonkeyPatch, steps_s: list[float], expected_us: dict[str, float] | None
) -> None:
    times = iter(accumulate([0.0, *steps_s]))
    monkeypatch.setattr(time, "perf_counter", lambda: next(times))
    watch = Stopwatch()
    for _ in steps_s:
        watch.tick()
    assert watch.step_us() == (expected_us and pytest.approx(expected_us, rel=1e-6))


def test_a_resumed_run_keeps_the_epochs_that_it_builds_on(tmp_path: Path) -> None:
    file = MetricsFile(tmp_path)
    file.start(0)
    for epoch in (1, 2, 3):
        file.append({"epoch": epoch})
    path = tmp_path / "metrics.jsonl"
    path.write_text(path.read_text() + '{"epoch": 4, "cut o')
    file.start(2)
    file.append({"epoch": 3})
    assert [record["epoch"] for record in read_metrics(path)] == [1, 2, 3]
    MetricsFile(tmp_path).start(0)
    assert read_metrics(path) == []


def test_replaced_files_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "new" / "result.json"
    replace_text(path, json.dumps({"a": 1}))
    replace_text(path, json.dumps({"a": 2}))
    assert json.loads(path.read_text()) == {"a": 2}
    assert [entry.name for entry in path.parent.iterdir()] == ["result.json"]


def test_live_figures_are_the_last_ones_of_every_rank() -> None:
    board = Board(None, 1.0)
    LiveFigures(board, 1).publish({"interfaces": {"b": ROW}, "train_loss": 1.5})
    LiveFigures(board, 0).publish({"interfaces": {"a": ROW}})
    viewer = LiveFigures(board, 0)
    assert viewer.due()
    assert viewer.look(3) == {"interfaces": {"a": ROW, "b": ROW}, "train_loss": 1.5}
    assert not viewer.due()


def test_one_line() -> None:
    figures = {
        "train_loss": 0.12345,
        "samples_per_s": 12345.6,
        "interfaces": {"cut": ROW, "exact": {"cosine": None, "lateness": None}},
        "test_loss": 0.5,
        "test_accuracy": 0.98765,
    }
    assert line(figures) == (
        "loss 0.1235  12,346 samples/s  cut cosine 0.50 late 2.0  "
        "test loss 0.5000  test accuracy 98.77%"
    )
    assert line({}) == ""
    guarded = {"cut": ROW | {"regime": "exact"}, "other": {"regime": "predicted"}}
    assert line({"interfaces": guarded}) == "cut cosine 0.50 (waits for the true gradient) late 2.0"


def test_plain_lines_where_there_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    progress = Progress(shown=True, epochs=3)
    assert not progress.live
    progress.begin("epoch 1", 10)
    progress.update(5, {})
    progress.end()
    progress.epoch({"epoch": 1, "train_loss": 1.0})
    turn = {"step": 7, "regime": "none", "explained": -0.5, "again": 9}
    progress.epoch({"epoch": 2, "interfaces": {"cut": {"turns": [turn]}}})
    Progress(shown=False, epochs=3).epoch({"epoch": 1})
    monkeypatch.setenv("DNIC_PROGRESS", "none")
    Progress(shown=True, epochs=3).epoch({"epoch": 1})
    assert capsys.readouterr().out.splitlines() == [
        "epoch 1/3  loss 1.0000",
        "from step 7 on cut goes on without a gradient: the head is of no use "
        "(it explains -50% of the true gradient), and is tried again at step 9",
        "epoch 2/3  ",
    ]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_live_display_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("TERM", "xterm")
    progress = Progress(shown=True, epochs=1)
    assert progress.live
    progress.begin("epoch 1", 10)
    progress.update(5, {"train_loss": 0.25})
    progress.end()
    assert "5/10" in terminal.getvalue()
    assert "loss 0.2500" in terminal.getvalue()
    hides_the_cursor = "\x1b[?25l"
    assert hides_the_cursor not in terminal.getvalue()
