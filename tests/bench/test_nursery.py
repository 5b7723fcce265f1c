"""Forked ranks: the bits of those that torchrun starts, their failures, and none that is left."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dnic.bench.held import let_go
from dnic.bench.hosts import hosts_behind
from dnic.bench.linkspec import LinkSpec
from dnic.bench.namespaces import unavailable
from dnic.bench.nursery import Nursery, nursery
from dnic.runtime.launch import RankFault
from dnic.runtime.record import read_record
from tests.runtime.conftest import run_ranks, same, write_bundle

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks on Linux only"),
]


@pytest.fixture(scope="module")
def ranks() -> Iterator[Nursery]:
    with nursery() as started:
        yield started


def run(ranks: Nursery, folder: Path, out: Path, *extra: str, **others: Any) -> None:
    ranks.launch(
        folder, mode="decoupled", processes=2, out=out, pin=True, extra=["--timeout=60", *extra],
        **others,
    )  # fmt: skip


def test_the_bits_are_those_of_other_runs(ranks: Nursery, tmp_path: Path) -> None:
    folder = write_bundle(tmp_path / "bundle", "mlp2", warmup_steps=2)
    run_ranks(folder, 2, f"--record={tmp_path / 'here'}", f"--out={tmp_path / 'run'}")
    for name in ("first", "second"):
        run(ranks, folder, tmp_path / "out", f"--record={tmp_path / name}")
        assert same(read_record(tmp_path / name), read_record(tmp_path / "here"))
    if unavailable() is None:
        with hosts_behind(LinkSpec(1000.0, 125e6), 2) as hosts:
            run(ranks, folder, tmp_path / "out", f"--record={tmp_path / 'far'}", hosts=hosts)
            assert hosts.relay_figures()["bytes"] > 0
        assert same(read_record(tmp_path / "far"), read_record(tmp_path / "here"))


def test_threads_are_those_that_were_asked_for(ranks: Nursery, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import os, pathlib, sys, torch\n"
        "out = pathlib.Path(sys.argv[2].partition('=')[2])\n"
        "(out / 'said').write_text(f\"{torch.get_num_threads()} {os.environ.get('RANK')}\")\n"
    )
    for threads in (1, 2):
        ranks.launch(
            tmp_path, mode="backprop", processes=1, out=tmp_path, pin=False,
            environment={"OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        assert (tmp_path / "said").read_text() == f"{threads} None"


def test_a_failure_is_reported_and_the_next_run_is_not_touched(
    ranks: Nursery, tmp_path: Path
) -> None:
    def edit(name: str, text: str) -> str:
        signature = "def forward(self, hidden: Tensor) -> Tensor:\n"
        failing = "        raise ValueError('of the last stage')\n"
        return text.replace(signature, signature + failing) if name == "stages.py" else text

    broken = write_bundle(tmp_path / "broken", "mlp2", edit=edit)
    with pytest.raises(RankFault) as caught:
        run(ranks, broken, tmp_path / "out")
    assert caught.value.rank == 1 and "of the last stage" in caught.value.report
    (tmp_path / "train.py").write_text("import os; os.kill(os.getpid(), 9)\n")
    with pytest.raises(RankFault, match="-9"):
        run(ranks, tmp_path, tmp_path / "killed")
    run(ranks, write_bundle(tmp_path / "bundle", "mlp2"), tmp_path / "out", "--max-steps=2")


def test_no_rank_outlives_the_one_who_asked(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import os, pathlib, signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"pathlib.Path({str(tmp_path)!r}, 'pid').write_text(str(os.getpid()))\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "dnic.bench.forked"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    rank = {"environment": {"OMP_NUM_THREADS": "1"}, "core": None, "namespace": None}
    asked = {
        "argv": [str(tmp_path / "train.py")],
        "ranks": [{**rank, "log": str(tmp_path / "log")}],
    }
    assert process.stdin is not None
    process.stdin.write((json.dumps(asked) + "\n").encode())
    process.stdin.flush()
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        assert process.poll() is None
        time.sleep(0.02)
    pid = int((tmp_path / "pid").read_text())
    assert Path(f"/proc/{pid}").exists()
    let_go(process)
    assert not Path(f"/proc/{pid}").exists()
