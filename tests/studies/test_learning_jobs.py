"""Runs side by side in processes of their own: done once, retried, interrupted, never lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from studies.learning.jobs import Jobs, program_of
from studies.learning.runs import Run
from studies.learning.store import Store
from tests.studies.conftest import small

pytestmark = pytest.mark.processes


def pretend(run: Run) -> str:
    return "tests.studies.pretend"


def jobs(store: Store, folder: Path, number: int = 2) -> tuple[Jobs, StringIO]:
    words = StringIO()
    console = Console(file=words, width=200)
    return Jobs(store, folder, {"command": "c", "versions": {}}, number, console, pretend), words


def test_runs_are_done_on_cores_of_their_own_and_once(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    runs = [small(seed=seed) for seed in range(3)]
    done, _ = jobs(Store(path), tmp_path)
    assert done.do(runs)
    first = list(Store(path))
    assert sorted(entry["run"]["seed"] for entry in first) == [0, 1, 2]
    allowed = os.sched_getaffinity(0)
    assert {tuple(entry["core"]) for entry in first} == {
        (core,) for core in sorted(allowed)[: min(2, len(allowed))]
    }
    assert all(entry["command"] == "c" and entry["seconds"] > 0 for entry in first)
    again, _ = jobs(Store(path), tmp_path)
    assert again.do(runs)
    assert list(Store(path)) == first


def test_a_failure_is_told_kept_and_tried_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    failing, dying = small(window=2), small(window=3)
    for _ in range(2):
        done, words = jobs(Store(path), tmp_path)
        assert done.do([failing, dying, small()])
        assert f"{failing.key}: no such gradient" in words.getvalue()
    store = Store(path)
    assert store.get(failing.key)["error"] == "no such gradient"
    assert store.get(dying.key)["error"] == "something went wrong"
    assert store.done(small().key)
    assert len(path.read_text().splitlines()) == 5


STUDY = """
import sys
from pathlib import Path
from rich.console import Console
from studies.learning.jobs import Jobs
from studies.learning.store import Store
from tests.studies.conftest import small
folder = Path(sys.argv[1])
store = Store(folder / "runs.jsonl")
runs = [small(seed=0), small(seed=1, window=int(sys.argv[2])), small(seed=2)]
jobs = Jobs(store, folder, {}, 1, Console(), lambda run: "tests.studies.pretend")
print("left" if not jobs.do(runs) else "all")
"""


@pytest.mark.parametrize(("window", "signals"), [(1, 1), (4, 2)])
def test_ctrl_c_keeps_what_was_done(
    tmp_path: Path, project: Path, window: int, signals: int
) -> None:
    """Once: the second run is waited for. Twice: it hangs, and is ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", STUDY, str(tmp_path), str(window)],
        cwd=project,
        stdout=subprocess.PIPE,
        text=True,
    )
    wait_for(tmp_path / "began-1")
    for _ in range(signals):
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    words, _ = process.communicate(timeout=60)
    assert words.splitlines()[-1] == "left"
    assert not (tmp_path / "began-2").exists()
    seeds = [entry["run"]["seed"] for entry in Store(tmp_path / "runs.jsonl")]
    assert seeds == ([0, 1] if window == 1 else [0])


def wait_for(path: Path) -> None:
    end = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_which_program_does_a_run() -> None:
    assert program_of(small()) == "studies.learning.train"
    assert program_of(small(way="ddp")) == "studies.learning.engine"
