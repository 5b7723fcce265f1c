"""Data parallelism computes what backprop computes, whatever the shares of a batch are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dnic.runtime.checkpoint import load_full_state_dict
from dnic.runtime.launch import RankFault, launch
from dnic.runtime.record import Record, read_record

pytestmark = pytest.mark.processes

Make = Callable[..., Path]
Run = Callable[..., Any]

# AdamW divides by the size of a gradient and so makes much of a rounding difference.
SGD = {"name": "SGD", "options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}}
TRAIN = {"batch_size": 16, "epochs": 2, "seed": 3, "optimizer": SGD}


def samples(number: int) -> Callable[[str, str], str]:
    return lambda name, text: text.replace("_data(100, 1)", f"_data({number}, 1)")


def unseeded(name: str, text: str) -> str:
    """Data that are drawn from the global generator, and samples that are fetched one by one."""
    one_by_one = "class Rows(TensorDataset):\n    pass\n\n\ndef _data"
    return (
        text.replace(", generator=generator)", ")")
        .replace("def _data", one_by_one)
        .replace("return TensorDataset(", "return Rows(")
    )


def frozen(name: str, text: str) -> str:
    return text.replace(
        "self.last = nn.Linear(16, 5)",
        "self.last = nn.Linear(16, 5)\n        self.left.requires_grad_(False)",
    )


def assert_same_training(run: Record, backprop: Record, steps: int) -> None:
    assert len(run.losses) == len(backprop.losses) == steps
    torch.testing.assert_close(run.losses, backprop.losses, rtol=1e-5, atol=1e-6)
    assert run.parameters.keys() == backprop.parameters.keys()
    torch.testing.assert_close(run.parameters, backprop.parameters, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "processes", "edit"),
    [
        pytest.param("mlp2", 2, samples(99), id="parameters that are not used"),
        pytest.param("skip3", 3, samples(98), id="a process without a sample"),
        pytest.param("skip3", 2, frozen, id="frozen parameters"),
        pytest.param("mlp2", 3, unseeded, id="data drawn at random"),
    ],
)
def test_equals_backprop(
    bundle: Make, run_ranks: Run, kind: str, processes: int, edit: Any, tmp_path: Path
) -> None:
    folder = bundle(kind, edit=edit, plan_keys={"train": TRAIN})
    for mode, ranks in (("ddp", processes), ("backprop", 1)):
        arguments = (f"--mode={mode}", "--no-dropout", f"--record={tmp_path / mode}")
        run_ranks(folder, ranks, *arguments)
    assert_same_training(read_record(tmp_path / "ddp"), read_record(tmp_path / "backprop"), 14)
    ddp, backprop = (
        json.loads((folder / "runs" / mode / "result.json").read_text())
        for mode in ("ddp", "backprop")
    )
    assert (ddp["mode"], ddp["world_size"], ddp["steps"]) == ("ddp", processes, 14)
    assert ddp["test_samples"] == backprop["test_samples"] == 40
    for figure in ("test_accuracy", "test_loss", "train_loss"):
        assert ddp[figure] == pytest.approx(backprop[figure], rel=1e-5)


def test_resumed_run_gives_the_same_bits_and_writes_the_weights_once(
    bundle: Make, run_ranks: Run, same: Run, load_module: Run, tmp_path: Path
) -> None:
    drop = "self.blocks = nn.Sequential(nn.Dropout(0.2), "
    folder = bundle(
        "conv2",
        edit=lambda name, text: text.replace("self.blocks = nn.Sequential(", drop),
        plan_keys={"schedule": {"mode": "ddp"}},
    )
    run_ranks(folder, 2, f"--record={tmp_path / 'whole'}")
    resumed = tmp_path / "resumed"
    run_ranks(folder, 2, f"--out={resumed}", "--epochs=1")
    run_ranks(
        folder, 2, f"--out={resumed}", f"--resume={resumed}", f"--record={tmp_path / 'parts'}"
    )
    whole, parts = read_record(tmp_path / "whole"), read_record(tmp_path / "parts")
    assert same(Record(whole.losses[7:], whole.parameters, {}), parts)
    assert not torch.load(tmp_path / "whole" / "rank1.pt")["parameters"]
    model = load_module(folder / "model.py").build_model()
    state = load_full_state_dict(resumed)
    model.load_state_dict(state, strict=True)
    assert same(Record([0.0], state, {}), Record([0.0], parts.parameters, {}))
    run_ranks(folder, 2, "--mode=exact", "--epochs=1")
    with pytest.raises(RankFault, match="the checkpoint is of --mode exact"):
        launch(folder, extra=[f"--resume={folder / 'runs' / 'exact'}"])


def test_no_thread_of_the_process_group_outlives_the_run(bundle: Make, run_ranks: Run) -> None:
    left = """
    from pathlib import Path

    names = [comm.read_text() for comm in Path("/proc/self/task").glob("*/comm")]
    assert not any("gloo" in name for name in names), names
"""

    def checked(name: str, text: str) -> str:
        return text.rstrip() + left if name == "train.py" else text

    run_ranks(bundle("mlp2", edit=checked), 2, "--mode=ddp", "--epochs=1")


def test_one_process_is_backprop(bundle: Make, run_ranks: Run, same: Run, tmp_path: Path) -> None:
    folder = bundle("mlp2")
    for mode in ("ddp", "backprop"):
        run_ranks(folder, 1, f"--mode={mode}", f"--record={tmp_path / mode}")
    assert same(read_record(tmp_path / "ddp"), read_record(tmp_path / "backprop"))


def test_parameters_that_are_used_now_and_then_are_refused(bundle: Make, run_ranks: Run) -> None:
    """Their gradients would not be averaged, and nobody would know."""
    counted = """self.calls = getattr(self, "calls", 0) + 1
        left = stem if self.calls > 1 else torch.relu(self.left(stem))"""
    folder = bundle(
        "skip3", edit=lambda name, text: text.replace("left = torch.relu(self.left(stem))", counted)
    )
    assert 2 in run_ranks(folder, 2, "--mode=ddp", fails=True)
    failure = json.loads((folder / "runs/ddp/failure.json").read_text())
    assert "a parameter that had a gradient in the first step" in failure["message"]
    assert failure["stage"] is None


def test_a_failing_process_ends_the_others(bundle: Make) -> None:
    text = "import os\n\ndef loss(output, target):\n    assert os.environ['RANK'] != '1'\n"
    folder = bundle("mlp2", edit=lambda name, old: old.replace("def loss(output, target):\n", text))
    with pytest.raises(RankFault, match="rank 1 failed") as caught:
        launch(folder, mode="ddp", processes=3)
    assert "AssertionError" in caught.value.report
