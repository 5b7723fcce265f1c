"""A stage that stands still holds the others no longer than it must, and loses nothing.

The stage stops itself by SIGSTOP in the middle of an epoch, as the scheduler of a shared machine or
an operator would stop it; a process of its own wakes it up later.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnic.runtime.record import read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

STOPPED_S = 3
STOPS_AT = 3
# Put into the stages' forward: the first one counts, the second one stops itself, wakes up again
# and notes for how long it stood still and how far the first one has come.
COUNT = """
        import pathlib
        Stage0.calls = getattr(Stage0, "calls", 0) + self.training
        pathlib.Path({calls!r}).write_text(str(Stage0.calls))
"""
STOP = """
        import json, os, pathlib, signal, subprocess, time
        Stage1.calls = getattr(Stage1, "calls", 0) + self.training
        if self.training and Stage1.calls == {at}:
            begin = time.monotonic()
            waker = subprocess.Popen(["sh", "-c", f"sleep {seconds}; kill -CONT {{os.getpid()}}"])
            os.kill(os.getpid(), signal.SIGSTOP)
            stopped_s, first = time.monotonic() - begin, pathlib.Path({calls!r}).read_text()
            waker.wait()
            pathlib.Path({report!r}).write_text(json.dumps([stopped_s, int(first)]))
"""


def stopping(folder: Path) -> Callable[[str, str], str]:
    """Makes the second stage stop in its third training step."""
    calls, report = str(folder / "calls"), str(folder / "report.json")

    def edit(name: str, text: str) -> str:
        if name != "stages.py":
            return text
        added = {
            "x": COUNT.format(calls=calls),
            "hidden": STOP.format(at=STOPS_AT, seconds=STOPPED_S, calls=calls, report=report),
        }
        for argument, lines in added.items():
            signature = f"def forward(self, {argument}: Tensor) -> Tensor:\n"
            assert signature in text
            text = text.replace(signature, signature + lines)
        return text

    return edit


@pytest.mark.processes
@pytest.mark.parametrize("window", [2, 3])
def test_a_stage_that_is_stopped_and_goes_on(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, window: int, tmp_path: Path
) -> None:
    folder = bundle("mlp2", window=window, edit=stopping(tmp_path))
    run_ranks(folder, 2, f"--record={tmp_path / 'record'}", "--no-evaluate")
    stopped_s, first = json.loads((tmp_path / "report.json").read_text())
    assert stopped_s >= STOPPED_S - 0.1
    # The first stage went on as far as the window lets it, and no further.
    assert STOPS_AT < first <= STOPS_AT + window
    record = read_record(tmp_path / "record")
    undisturbed = bundle("mlp2", window=window)
    assert len(record.losses) == 14
    assert same(record, reference(undisturbed).run())


@pytest.mark.processes
@pytest.mark.parametrize("window", [1, 3])
def test_messages_under_way_take_what_the_window_says(
    bundle: Make, run_ranks: Run, window: int
) -> None:
    folder = bundle("mlp2", window=window)
    # Shared memory takes whole pages for each slot.
    gloo = {"DNIC_TRANSPORT": "gloo"}
    run_ranks(folder, 2, "--epochs=1", "--no-evaluate", "--no-checkpoint", variables=gloo)
    result = json.loads((folder / "runs/decoupled/result.json").read_text())
    # 16 samples of 32 float32 there and back, 16 targets of int64 there.
    there, back = 16 * 32 * 4 + 16 * 8, 16 * 32 * 4
    slots = max(window + 1, 2)
    assert result["in_flight_bytes"] == [slots * (there + back)] * 2
    # Seven batches, the last of 4 samples; every tensor begins at a multiple of 64 bytes.
    last_there, last_back = 4 * 32 * 4 + 64, 4 * 32 * 4
    assert result["sent_bytes"] == [6 * there + last_there, 6 * back + last_back]
