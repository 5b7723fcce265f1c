"""Runs of every part, small: what is trained and evaluated is what a loop by hand gives."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from dnic.proof.modules import bundle_modules
from dnic.runtime.batches import Batches
from dnic.runtime.seeds import seed_everything
from studies.learning.__main__ import main
from studies.learning.bundles import bundle_of
from studies.learning.engine import timed_run
from studies.learning.runs import Run
from studies.learning.store import Store
from studies.learning.train import timed, trained
from tests.studies.conftest import small


def by_hand(run: Run, folder: Path) -> list[tuple[float, float]]:
    """Loss and accuracy after each epoch of plain backprop: AdamW, its rate along a cosine."""
    with bundle_modules(folder) as (model, _):
        seed_everything(run.seed)
        net = model.build_model()
        batches = Batches(model.train_data(), 256, shuffle=True, seed=run.seed, loader_options={})
        images, labels = model.test_data().tensors
    optimizer = torch.optim.AdamW(net.parameters(), lr=run.lr)
    found = []
    for epoch in range(1, run.epochs + 1):
        for group in optimizer.param_groups:
            group["lr"] = run.lr * (1 + math.cos(math.pi * (epoch - 1) / run.epochs)) / 2
        net.train()
        for (pictures,), targets in batches.epoch(epoch):
            optimizer.zero_grad()
            cross_entropy(net(pictures), targets).backward()
            optimizer.step()
        net.eval()
        with torch.no_grad():
            output = net(images)
        right = (output.argmax(1) == labels).double().mean()
        found.append((float(cross_entropy(output, labels)), 100 * float(right)))
    return found


@pytest.mark.parametrize("part", ["sources", "tuning"])
def test_exact_is_backprop_and_the_whole_model_is_evaluated(
    images: Path, tmp_path: Path, part: str
) -> None:
    """Tuning on the held-out part: another test set, and other training images."""
    run = small(part=part, source="exact", epochs=3)
    curve = trained(run, tmp_path / "cache", tmp_path / "one")["curve"]
    expected = by_hand(run, bundle_of(run, tmp_path / "cache", tmp_path / "two"))
    assert [row["epoch"] for row in curve] == [1, 2, 3]
    assert [row["step"] for row in curve] == [4, 8, 12]
    for row, (loss, accuracy) in zip(curve, expected, strict=True):
        assert row["loss"] == pytest.approx(loss, abs=2e-5)
        assert row["quality"] == pytest.approx(accuracy, abs=1e-4)
    assert curve[-1]["quality"] > 15


def test_heads_predict_and_lateness_matters(images: Path, tmp_path: Path) -> None:
    """The same seed learns other weights with gradients of another batch later."""
    curves = []
    for place, run in enumerate((small(), small(window=2), small(source="stale", window=2))):
        found = trained(run, tmp_path / "cache", tmp_path / str(place))
        curves.append(tuple(row["loss"] for row in found["curve"]))
        predictions = found["predictions"]
        if run.source == "stale":
            assert predictions == {}
        else:
            (row,) = predictions.values()
            assert 0 < row["explained"] < row["cosine"] < 1
    assert len(set(curves)) == 3


def test_the_transformer_counts_bits(images: Path, tmp_path: Path) -> None:
    run = small(
        model="characters", data="text", layers=2, epochs=2, epoch_steps=8, samples=40, width=256
    )
    curve = trained(run, tmp_path / "cache", tmp_path / "one")["curve"]
    for row in curve:
        assert row["quality"] == pytest.approx(row["loss"] / math.log(2), abs=1e-4)
    assert curve[1]["quality"] < curve[0]["quality"] < 7
    times = timed(run, tmp_path / "cache", tmp_path / "two", steps=2)
    assert all(seconds > 0 for seconds in times.values())


@pytest.mark.processes
def test_the_engine_learns_what_the_reference_learns(images: Path, tmp_path: Path) -> None:
    """The two halves of part 3 are of one algorithm: the same losses, at the same window."""
    run = small(part="time", window=2, way="decoupled")
    found = timed_run(run, tmp_path / "cache", tmp_path / "engine")
    same = replace(run, part="budget", way="reference")
    expected = trained(same, tmp_path / "cache", tmp_path / "reference")
    assert [row["loss"] for row in found["curve"]] == [row["loss"] for row in expected["curve"]]
    assert [row["quality"] for row in found["curve"]] == [
        row["quality"] for row in expected["curve"]
    ]
    seconds = [row["seconds"] for row in found["curve"]]
    assert 0 < seconds[0] < seconds[1]
    (row,) = found["predictions"].values()
    assert 0 < row["explained"] < row["cosine"] < 1


def pretend(run: Run) -> str:
    return "tests.studies.pretend"


@pytest.mark.processes
def test_the_command_does_what_is_missing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """All parts, with runs that train nothing; a second time there is nothing left to do."""
    only = "--only=fashion connected-3 k2 exact,fashion connected-3 k3 cdni"
    out = ["--quick", f"--out={tmp_path}", only]
    assert main(out, pretend) == 0
    words = capsys.readouterr().out
    assert "tuning: 6 runs" in words
    assert "part 1: 2 runs" in words
    assert "part 2: 1 runs" in words
    assert "part 3: 7 runs" in words
    assert words.count("no head is timed") == 6
    assert words.count("3 layers, without true gradients: part 2") == 1
    path = tmp_path / "learning" / "runs.jsonl"
    before = path.read_text()
    parts = [entry["run"]["part"] for entry in Store(path)]
    assert parts.count("tuning") == 6 and (parts.count("time"), parts.count("budget")) == (5, 2)
    assert all("--quick" in json.loads(line)["command"] for line in before.splitlines())
    assert main(out, pretend) == 0
    assert path.read_text() == before
    assert "fully connected, 3 layers" in (tmp_path / "learning.md").read_text()


@pytest.mark.processes
def test_without_a_learning_rate_nothing_is_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = "--only=fashion connected-3 k2 none"
    dying = main(["--quick", "--part=2", f"--out={tmp_path}", only], lambda run: "json.missing")
    assert dying == 1
    words = capsys.readouterr().out
    assert "No module named json.missing" in words
    assert "1 runs are left out: there is no learning rate for them" in words
