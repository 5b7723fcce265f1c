"""Samples that are mappings, a model that computes its own loss: in stages and undivided."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import default_collate

from dnic.runtime.record import read_record

pytestmark = pytest.mark.processes

Make = Callable[..., Path]
Run = Callable[..., Any]

MODEL = """import torch
import torch.nn.functional as F
from torch import nn


class Tagger(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.first = nn.Linear(8, 16)
        self.last = nn.Linear(16, 5)

    def forward(self, input_ids, extra, labels=None, scaled=False):
        hidden = self.embed(input_ids) * extra["mask"].unsqueeze(-1)
        hidden = torch.tanh(self.first(hidden))
        logits = self.last(hidden) * (2.0 if scaled else 1.0)
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


build_model = Tagger


class Words(torch.utils.data.Dataset):
    def __init__(self, samples, seed):
        generator = torch.Generator().manual_seed(seed)
        self.words = torch.randint(11, (samples, 6), generator=generator)
        self.masks = (torch.rand(samples, 6, generator=generator) > 0.2).float()

    def __len__(self):
        return len(self.words)

    def __getitem__(self, index):
        words = self.words[index]
        extra = {"mask": self.masks[index]}
        return {"index": index, "labels": words % 5, "extra": extra, "input_ids": words}


def train_data():
    return Words(40, 1)


def test_data():
    return Words(20, 2)
"""

STAGES = """
class Stage0(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "embed", "first")

    def forward(self, input_ids: Tensor, mask: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.embed(input_ids) * mask.unsqueeze(-1)
        return torch.tanh(self.first(hidden)), labels


class Stage1(runtime.Stage):
    def __init__(self, source: nn.Module) -> None:
        super().__init__(source, "last")

    def forward(self, hidden: Tensor, labels: Tensor) -> dict[str, Tensor]:
        logits = self.last(hidden) * 2.0
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten())
        return {"loss": loss, "logits": logits}


STAGES = (Stage0, Stage1)
"""

MODEL_KEYS = {
    "inputs": [
        {"name": "input_ids", "path": ["input_ids"]},
        {"name": "mask", "path": ["extra", "mask"]},
        {"name": "labels", "path": ["labels"]},
    ],
    "constants": [{"path": ["scaled"], "value": True}],
    "target": "labels",
}


@pytest.fixture
def tagger(bundle: Make, rows: SimpleNamespace) -> Callable[..., Path]:
    """The bundle of a model that takes keywords, one of them a mapping, and returns its loss."""

    def make(*, model_text: str = MODEL, **keys: Any) -> Path:
        stages = [
            rows.stage(0, ["input_ids", "mask", "labels"], ["hidden", "labels"], "first"),
            rows.stage(1, ["hidden", "labels"], ["output"], "last"),
        ]
        stages[0]["operations"] = [
            {"name": "input_ids", "kind": "input", "shape": ["B", 6]},
            {"name": "labels", "kind": "input", "shape": ["B", 6]},
            {"name": "mask", "kind": "input", "shape": ["B", 6]},
        ]
        labels = rows.tensor("labels", 6, dtype="int64", grad=False)
        cut = rows.interface(0, 1, rows.tensor("hidden", 6, 16), labels)
        cut["head"]["context"] = keys.pop("context", "target")
        target = {"shape": ["B", 6], "dtype": "int64", "classes": 5}
        return bundle(
            (model_text, STAGES, stages, [cut]),
            edit=lambda name, text: text.replace("model.loss", "runtime.own_loss"),
            model_keys=MODEL_KEYS | keys.pop("model_keys", {}),
            plan_keys={"target": target} | keys,
        )

    return make


def test_decoupled_equals_reference(
    tagger: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    folder = tagger()
    run_ranks(folder, 2, f"--record={tmp_path / 'record'}")
    expected = reference(folder).run()
    assert len(expected.losses) == 6
    assert same(read_record(tmp_path / "record"), expected)


def test_exact_ways_follow_backprop_and_all_evaluate(
    tagger: Make, run_ranks: Run, load_module: Run, tmp_path: Path
) -> None:
    folder = tagger()
    results = {}
    for mode, ranks in (("exact", 2), ("backprop", 1), ("ddp", 3), ("1f1b", 2)):
        run_ranks(folder, ranks, f"--mode={mode}", f"--record={tmp_path / mode}")
        results[mode] = json.loads((folder / "runs" / mode / "result.json").read_text())
    backprop = read_record(tmp_path / "backprop")
    for mode in ("exact", "ddp", "1f1b"):
        run = read_record(tmp_path / mode)
        torch.testing.assert_close(run.losses, backprop.losses, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(run.parameters, backprop.parameters, rtol=1e-4, atol=1e-5)
    user = load_module(folder / "model.py")
    model = user.build_model()
    model.load_state_dict(backprop.parameters)
    batch = default_collate(list(user.test_data()))
    del batch["index"]
    with torch.no_grad():
        output = model.eval()(**batch, scaled=True)
    accuracy = (output["logits"].argmax(-1) == batch["labels"]).double().mean().item()
    for result in results.values():
        assert result["test_accuracy"] == pytest.approx(accuracy, abs=1e-9)
        assert result["test_loss"] == pytest.approx(output["loss"].item(), rel=1e-5)


def test_without_targets_and_with_weights_from_the_seed(
    tagger: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    folder = tagger(model_keys={"target": None, "weights": "seed"}, target=None, context="none")
    for path in (folder / "plan.yaml", folder / "init.safetensors"):
        assert path.is_file()
    text = (folder / "plan.yaml").read_text()
    (folder / "plan.yaml").write_text(
        "".join(line for line in text.splitlines(True) if "init.safetensors" not in line)
    )
    (folder / "init.safetensors").unlink()
    run_ranks(folder, 2, f"--record={tmp_path / 'record'}")
    assert same(read_record(tmp_path / "record"), reference(folder).run())
    result = json.loads((folder / "runs/decoupled/result.json").read_text())
    assert result["test_accuracy"] is None
    assert result["test_loss"] > 0


def test_samples_of_another_shape_end_the_run_with_one_message(
    tagger: Make, run_ranks: Run
) -> None:
    folder = tagger(model_text=MODEL.replace("(samples, 6)", "(samples, 7)"))
    assert run_ranks(folder, 2, fails=True)[0] == 2
    failure = json.loads((folder / "runs/decoupled/failure.json").read_text())
    assert failure["rank"] == 0
    assert "input_ids of a batch has the shape [16, 7]" in failure["message"]
