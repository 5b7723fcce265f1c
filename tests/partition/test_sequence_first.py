"""Models in torch's sequence-first layout are cut and decoupled like others."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnic.compiler import plan_model
from dnic.partition.plan import Plan
from dnic.spec import spec_from_mapping

HEAD = """
import torch
import torch.nn.functional as F
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(50, 64)
        self.layers = nn.ModuleList({layer} for _ in range(2))
        self.last = nn.Linear(64, 7)

    def forward(self, tokens):
{forward}


def build_model():
    return Net()


def example_inputs():
    return torch.randint(50, (16, 12))


def loss(output, target):
    return F.cross_entropy(output, target)


def train_data():
    tokens = torch.randint(50, (32, 12))
    return torch.utils.data.TensorDataset(tokens, tokens % 7)
"""

TRANSFORMER = """
        hidden = self.embed(tokens.t())
        for layer in self.layers:
            hidden = layer(hidden)
        return self.last(hidden).permute(1, 2, 0)
"""
RECURRENT = """
        hidden = self.embed(tokens.t())
        for layer in self.layers:
            hidden, _ = layer(hidden)
        return self.last(hidden).permute(1, 2, 0)
"""
FLATTENED = """
        batch, length = tokens.shape
        hidden = self.embed(tokens).view(batch * length, 64)
        for layer in self.layers:
            hidden = torch.relu(layer(hidden))
        return self.last(hidden).view(batch, length, 7).transpose(1, 2)
"""


def planned(folder: Path, layer: str, forward: str, source: str) -> Plan:
    model = folder / "net.py"
    model.write_text(HEAD.replace("{layer}", layer).replace("{forward}", forward))
    spec = spec_from_mapping(
        {
            "model": {"file": str(model)},
            "devices": {"count": 2, "profile": "cpu-core"},
            "partition": {"stages": 2, "cuts": ["layers.0"]},
            "interfaces": {"default": {"sources": [source]}},
        },
        "test",
    )
    return plan_model(spec).plan


@pytest.mark.parametrize("source", ["synthetic", "virtual", "local"])
@pytest.mark.parametrize(
    ("layer", "forward", "shape"),
    [
        ("nn.TransformerEncoderLayer(64, 4, 128)", TRANSFORMER, (12, "B", 64)),
        ("nn.LSTM(64, 64)", RECURRENT, (12, "B", 64)),
        ("nn.Linear(64, 64)", FLATTENED, ("12*B", 64)),
    ],
    ids=["transformer", "recurrent", "flattened"],
)
def test_gradients_are_predicted_where_the_batch_is_not_in_front(
    tmp_path: Path, layer: str, forward: str, shape: tuple[int | str, ...], source: str
) -> None:
    plan = planned(tmp_path, layer, forward, source)
    (interface,) = plan.interfaces
    assert [tensor.shape for tensor in interface.tensors] == [shape]
    assert interface.gradient == source
    assert interface.head is not None
    assert interface.head.context == "target"
    assert interface.head.parameters > 0
