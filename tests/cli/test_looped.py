"""From a spec that asks for a looped schedule to a bundle that runs it; real processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cli.test_whole_path import dnic

MODEL = """
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import TensorDataset


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(12, 64)
        blocks = [nn.Sequential(nn.Linear(64, 64), nn.Tanh()) for _ in range(6)]
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(64, 5)

    def forward(self, x):
        return self.head(self.blocks(torch.relu(self.stem(x))))


build_model = Net


def example_inputs():
    return (torch.randn(16, 12),)


def loss(output, target):
    return F.cross_entropy(output, target)


def train_data():
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(5, (100,), generator=generator)
    inputs = torch.randn(100, 12, generator=generator) + target.float().view(-1, 1)
    return TensorDataset(inputs, target)


test_data = train_data
"""


@pytest.mark.processes
def test_interleaved_from_spec_to_run(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(MODEL)
    spec, folder = tmp_path / "net.yaml", tmp_path / "bundle"
    asked: dict[str, Any] = {
        "model": {"file": "net.py"},
        "train": {"epochs": 1, "optimizer": {"name": "SGD", "lr": 0.1}},
        "devices": {"count": 2, "profile": "cpu-core", "costs": "analytic"},
        "partition": {"schedule": "interleaved", "stages": 4, "microbatches": 4},
    }
    spec.write_text(yaml.safe_dump(asked))
    printed = dnic("compile", "--spec", spec, "-o", folder)
    assert "runs as interleaved on 2 processes, 4 microbatches" in printed
    assert "interleaved 1F1B, 4" in printed and "predicted only" not in printed
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    assert plan["schedule"] == {"mode": "interleaved", "processes": 2, "microbatches": 4}
    train = (folder / "train.py").read_text()
    assert '"""Train Net in 4 stages on 2 processes under the interleaved 1F1B schedule.' in train
    assert "torchrun --standalone --nproc-per-node=2 train.py" in train
    result = json.loads(dnic("train", folder, "--json"))
    assert (result["mode"], result["world_size"], result["microbatches"]) == ("interleaved", 2, 4)
    assert result["test_samples"] == 100
