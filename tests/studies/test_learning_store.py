"""A store that loses nothing: not at a kill, not at a failure, not when it is tidied."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from studies.learning.store import Store
from tests.studies.conftest import result, small

A, B = (result(small(seed=seed), 80.0, 90.0) for seed in (0, 1))


def test_what_was_added_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "new" / "runs.jsonl"
    store = Store(path)
    assert list(store) == []
    store.add(A)
    store.add(B)
    again = Store(path)
    assert list(again) == [A, B]
    assert again.get(A["key"]) == A
    assert again.done(A["key"])
    assert not again.done("another")


def test_a_failure_is_kept_and_done_again(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    store = Store(path)
    store.add({**A, "error": "no such gradient"})
    assert not Store(path).done(A["key"])
    assert Store(path).get(A["key"])["error"] == "no such gradient"
    store.add(A)
    assert Store(path).done(A["key"])
    assert len(Store(path)) == 1
    Store(path).tidy()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [A]


def test_tidying_keeps_what_others_have_added(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    first, second = Store(path), Store(path)
    first.add({**A, "error": "no"})
    second.add(B)
    first.add(A)
    first.tidy()
    assert list(Store(path)) == [A, B]
    assert len(path.read_text().splitlines()) == 2


@pytest.mark.parametrize("kept", [0, 1, 10, 200, -1])
def test_a_line_that_was_cut_off_costs_that_line_only(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "runs.jsonl"
    store = Store(path)
    store.add(A)
    whole = path.read_text()
    store.add(B)
    line = path.read_text().removeprefix(whole)
    path.write_text(whole + line[:kept])
    again = Store(path)
    # All of a line but its end is a line.
    assert list(again) == ([A, B] if kept == -1 else [A])
    again.add(B)
    assert list(Store(path)) == [A, B]


def test_a_result_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON compliant"):
        Store(tmp_path / "runs.jsonl").add({**A, "seconds": float("nan")})


KILLED = """
import os, signal, sys
from pathlib import Path
from studies.learning.store import Store
store = Store(Path(sys.argv[1]))
for number in range(100):
    if number == 30:
        os.kill(os.getpid(), signal.SIGKILL)
    store.add({"key": str(number), "run": {}, "curve": ["x" * 10_000]})
"""


def test_a_kill_loses_no_result(tmp_path: Path, project: Path) -> None:
    path = tmp_path / "runs.jsonl"
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(path)], cwd=project, check=False, timeout=60
    )
    assert ended.returncode == -9
    assert [entry["key"] for entry in Store(path)] == [str(number) for number in range(30)]
