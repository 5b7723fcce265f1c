"""Real torchrun: a run that goes well, and runs that fail with one report and no leftovers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnic.runtime.failure import read_failure
from dnic.runtime.launch import RankFault, launch, torchrun_command
from dnic.runtime.record import read_record

pytestmark = pytest.mark.processes

Make = Callable[..., Path]
Run = Callable[..., Any]
FAIL_AT_STEP_3 = """
        Stage1.calls = getattr(Stage1, "calls", 0) + self.training
        if Stage1.calls == 3:
            {failure}
"""


def failing_stage(failure: str) -> Callable[[str, str], str]:
    """Makes the second stage's forward fail in the third step."""

    def edit(name: str, text: str) -> str:
        signature = "def forward(self, hidden: Tensor) -> Tensor:\n"
        lines = FAIL_AT_STEP_3.format(failure=failure)
        return text.replace(signature, signature + lines) if name == "stages.py" else text

    return edit


def processes_of(folder: Path) -> list[int]:
    """Processes whose command line names the folder."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and str(folder).encode() in (entry / "cmdline").read_bytes():
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_good_run_leaves_everything_a_person_needs(
    bundle: Make,
    reference: Run,
    same: Run,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    folder, record = bundle("skip3"), tmp_path / "record"
    done = launch(folder, pin=True, extra=[f"--record={record}"])
    assert same(read_record(record), reference(folder).run())
    assert done.run_dir == folder / "runs" / "decoupled"
    assert done.result["mode"] == "decoupled"
    assert done.result["world_size"] == 3
    assert done.result["epochs"] == 2
    assert done.result["threads"] == 1
    assert done.result["samples_per_s"] > 0
    assert 0 <= done.result["test_accuracy"] <= 1
    rows = [json.loads(line) for line in (done.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2]
    assert rows[-1]["test_loss"] == done.result["test_loss"]
    assert set(rows[-1]["interfaces"]) == {"cut01", "cut02", "cut12"}
    assert (done.run_dir / "checkpoints" / "epoch-0002" / "dnic.json").is_file()
    shown = capfd.readouterr().out.splitlines()
    assert [line.split()[:2] for line in shown] == [["epoch", "1/2"], ["epoch", "2/2"]]
    command = f"torchrun --standalone --nproc-per-node=3 {folder}/train.py --record={record}"
    assert done.command == command == torchrun_command(folder, extra=[f"--record={record}"])
    assert processes_of(folder) == []


def test_exception_in_a_stage(bundle: Make, capfd: pytest.CaptureFixture[str]) -> None:
    """Started by plain torchrun: the failed rank's traceback once, nothing from the others."""
    folder = bundle("mlp2", edit=failing_stage('raise ValueError("boom")'))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run(
        [*command, str(folder / "train.py")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert done.stderr.count("ValueError: boom") == 1
    assert done.stderr.count("rank 0: ") <= 1
    failure = read_failure(folder / "runs" / "decoupled")
    assert failure is not None
    assert (failure["rank"], failure["exit_status"]) == (1, 1)
    assert "stages.py" in failure["traceback"]
    assert processes_of(folder) == []


def test_exception_in_the_data_set_under_launch(
    bundle: Make, capfd: pytest.CaptureFixture[str]
) -> None:
    def edit(name: str, text: str) -> str:
        broken = "def train_data():\n    raise SystemExit(7)\n"
        return text.replace("def train_data():\n", broken) if name == "model.py" else text

    folder = bundle("mlp2", edit=edit)
    with pytest.raises(RankFault) as caught:
        launch(folder)
    assert caught.value.rank == 0
    assert caught.value.exit_status == 7
    assert "rank 0 (stage 0) failed" in str(caught.value)
    assert "Traceback" not in capfd.readouterr().err
    assert processes_of(folder) == []


def test_the_command_says_the_mode_where_the_plan_does_not(bundle: Make) -> None:
    folder = bundle("mlp2", plan_keys={"schedule": {"mode": "ddp", "processes": 3}})
    torchrun = "torchrun --standalone --nproc-per-node="
    script = f"{folder}/train.py"
    assert torchrun_command(folder) == f"{torchrun}3 {script}"
    assert torchrun_command(folder, processes=5) == f"{torchrun}5 {script}"
    assert torchrun_command(folder, mode="1f1b") == f"{torchrun}2 {script} --mode=1f1b"
    assert torchrun_command(folder, mode="decoupled") == f"{torchrun}2 {script} --mode=decoupled"
    assert torchrun_command(folder, mode="backprop") == f"python {script} --mode=backprop"


def test_launch_runs_what_the_plan_says(bundle: Make) -> None:
    folder = bundle("mlp2", plan_keys={"schedule": {"mode": "ddp", "processes": 3}})
    done = launch(folder, quiet=True, extra=["--max-steps=8", "--no-evaluate", "--no-checkpoint"])
    assert done.run_dir == folder / "runs" / "ddp"
    assert (done.result["mode"], done.result["world_size"]) == ("ddp", 3)
    assert (done.result["steps"], done.result["microbatches"]) == (8, 1)
    step_us = done.result["step_us"]
    assert 0 < step_us["min"] <= step_us["median"]
    assert step_us["min"] <= step_us["mean"]


def test_killed_rank_under_launch(bundle: Make) -> None:
    folder = bundle("mlp2", edit=failing_stage("import os, signal; os.kill(os.getpid(), 9)"))
    with pytest.raises(RankFault, match="rank 1 was ended by SIGKILL") as caught:
        launch(folder)
    assert caught.value.exit_status == 128 + 9
    assert processes_of(folder) == []


def test_wrong_number_of_processes(bundle: Make) -> None:
    """One message, although every process finds the mistake."""
    folder = bundle("mlp2")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=3"]
    done = subprocess.run(
        [*command, str(folder / "train.py")], capture_output=True, text=True, timeout=120
    )
    assert done.stderr.count("this bundle has 2 stages; torchrun started 3 processes") == 1
    assert done.stderr.count("torchrun --standalone --nproc-per-node=2 train.py") == 1
    failure = read_failure(folder / "runs" / "decoupled")
    assert failure is not None
    assert failure["exit_status"] == 2


def test_without_torchrun(bundle: Make) -> None:
    folder = bundle("mlp2")
    done = subprocess.run(
        [sys.executable, str(folder / "train.py")], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "runtime fault: this bundle has 2 stages; this process was started without torchrun",
        "  expected: one process for each stage",
        "  try:      torchrun --standalone --nproc-per-node=2 train.py",
    ]


def test_interrupted_launch_ends_its_children(bundle: Make) -> None:
    folder = bundle("mlp2", edit=failing_stage("import time; time.sleep(600)"))
    script = (
        "import pathlib, signal, sys\nfrom dnic.runtime.launch import launch\n"
        # Where the tests run in the background, their children ignore it.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"launch(pathlib.Path({str(folder)!r}), quiet=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.DEVNULL, start_new_session=True
    )
    try:
        while len(processes_of(folder / "train.py")) < 3 and process.poll() is None:
            time.sleep(0.1)
        os.kill(process.pid, 2)
        assert process.wait(150) != 0
        assert processes_of(folder) == []
    finally:
        process.kill()
        process.wait()
