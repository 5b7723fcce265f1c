"""A failure anywhere ends every rank, with one report and that rank's own status."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import load_bundle
from dnic.runtime.failure import (
    FAILURE_FILE,
    Guard,
    LinkFault,
    exit_status,
    lost_peers_named,
    read_failure,
)
from dnic.runtime.place import Place, check_processes

Make = Callable[..., Path]
Run = Callable[..., Any]


def in_model(old: str, new: str) -> Callable[[str, str], str]:
    return lambda name, text: text.replace(old, new) if name == "model.py" else text


LOSS = "def loss(output, target):\n"
CASES = {
    "loss raises": (LOSS, "    raise KeyError(1)\n", 1, 1, "KeyError"),
    "loss exits": (LOSS, "    raise SystemExit(9)\n", 9, 1, "SystemExit"),
    "loss is no scalar": (
        "def loss(output, target):\n",
        "    return target\n",
        2,
        1,
        "RuntimeFault",
    ),
    "test data raises": ("def test_data():\n", "    raise OSError('gone')\n", 1, 0, "OSError"),
    "data is no data set": ("def train_data():\n", "    return 5\n", 2, 0, "RuntimeFault"),
}


@pytest.mark.processes
@pytest.mark.parametrize("case", CASES)
def test_every_rank_ends(bundle: Make, run_ranks: Run, case: str) -> None:
    signature, body, status, rank, exception = CASES[case]
    folder = bundle("mlp2", edit=in_model(signature, signature + body))
    statuses = run_ranks(folder, 2, fails=True, timeout_s=60)
    failure = read_failure(folder / "runs" / "decoupled")
    assert failure is not None
    assert (failure["rank"], failure["exception"]) == (rank, exception)
    assert statuses[rank] == failure["exit_status"] == status
    assert statuses[1 - rank] == 1


@pytest.mark.processes
def test_tensor_of_another_shape(bundle: Make, run_ranks: Run) -> None:
    def edit(name: str, text: str) -> str:
        last = "return self.drop(torch.relu(self.layers[1](x)))"
        return text.replace(last, f"{last}[:, :9]") if name == "stages.py" else text

    folder = bundle("mlp2", edit=edit)
    assert run_ranks(folder, 2, fails=True) == [2, 1]
    failure = read_failure(folder / "runs" / "decoupled")
    assert failure is not None
    assert "the tensor hidden is float32 [16, 9]" in failure["message"]
    assert "float32 [16, 32], as plan.yaml says" in failure["message"]


@pytest.mark.processes
def test_a_rank_that_hangs_is_given_up(bundle: Make, run_ranks: Run) -> None:
    hang = f"{LOSS}    import time; time.sleep(10)\n"
    folder = bundle("mlp2", edit=in_model(LOSS, hang))
    statuses = run_ranks(folder, 2, "--timeout=3", fails=True)
    failure = read_failure(folder / "runs" / "decoupled")
    assert failure is not None
    assert statuses[0] == 2
    assert failure["rank"] == 0
    assert "no answer from stage 1 in time" in failure["message"]
    assert "--timeout" in failure["message"]


@pytest.mark.processes
def test_leaving_together_is_no_failure(bundle: Make, run_ranks: Run) -> None:
    def edit(name: str, text: str) -> str:
        return text.replace("    for _ in", "    raise SystemExit\n    for _ in")

    folder = bundle("mlp2", edit=edit)
    run_ranks(folder, 2)
    assert read_failure(folder / "runs" / "decoupled") is None


def test_first_failure_of_a_run_wins(tmp_path: Path) -> None:
    def claim(rank: int, run_id: str) -> bool:
        guard = Guard(Place(rank, rank, 2, True, run_id))
        guard.run_dir = tmp_path
        return guard._claim(ValueError(f"{rank} {run_id}"), 1)

    assert claim(1, "a")
    assert not claim(0, "a")
    failure = read_failure(tmp_path)
    assert failure is not None
    assert failure["message"] == "1 a"
    assert claim(0, "b")  # a report of an earlier run does not count
    assert json.loads((tmp_path / FAILURE_FILE).read_text())["message"] == "0 b"
    assert [path.name for path in tmp_path.iterdir()] == [FAILURE_FILE]


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (RuntimeFault("x"), 2),
        (ValueError("x"), 1),
        (SystemExit(5), 5),
        (SystemExit("text"), 1),
    ],
)
def test_statuses(error: BaseException, status: int) -> None:
    assert exit_status(error) == status


def test_what_torch_says_of_a_lost_peer() -> None:
    assert LinkFault("stage 1", "Timed out waiting 3000ms for recv operation").timed_out
    assert not LinkFault("stage 1", "Connection closed by peer [127.0.0.1]:1").timed_out


def test_lost_peers_are_told_from_failures_here() -> None:
    with pytest.raises(LinkFault), lost_peers_named():
        raise RuntimeError("pair.cc:534: Connection closed by peer [127.0.0.1]:1")
    with pytest.raises(RuntimeError, match=r"^shapes$"), lost_peers_named():
        raise RuntimeError("shapes")
    with pytest.raises(RuntimeFault, match="ours"), lost_peers_named():
        raise RuntimeError("failed to run forward") from RuntimeFault("ours")
    # What the user's own code reports stays as it is.
    with pytest.raises(RuntimeError, match="failed to run forward"), lost_peers_named():
        raise RuntimeError("failed to run forward: timed out") from ValueError("theirs")


@pytest.mark.parametrize(
    ("place", "mode", "problem"),
    [
        (Place(0, 0, 3, True), "exact", "2 stages; torchrun started 3 processes"),
        (Place(0, 0, 1, True), "exact", "2 stages; torchrun started 1 process\n"),
        (Place(), "decoupled", "started without torchrun"),
        (Place(0, 0, 2, True), "backprop", "--mode backprop runs in one process"),
        (Place(0, 0, 3, True), "1f1b", "--nproc-per-node=2 train.py --mode 1f1b"),
        (Place(0, 0, 2, True), "exact", None),
        (Place(0, 0, 2, True), "gpipe", None),
        (Place(0, 0, 3, True), "ddp", None),
        (Place(), "ddp", None),
        (Place(), "backprop", None),
    ],
)
def test_number_of_processes(
    bundle: Callable[..., Path], place: Place, mode: Any, problem: str | None
) -> None:
    plan = load_bundle(bundle("mlp2")).plan
    if problem is None:
        check_processes(place, plan, mode)
        return
    with pytest.raises(RuntimeFault, match=problem):
        check_processes(place, plan, mode)
