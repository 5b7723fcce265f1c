"""Several heads at several depths, their outputs returned as a list."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, FEATURES, WIDTH = 10, 32, 48


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
            for _ in range(8)
        )
        self.heads = nn.ModuleList(nn.Linear(WIDTH, CLASSES) for _ in range(4))

    def forward(self, features: Tensor) -> list[Tensor]:
        x = self.embed(features)
        outputs = []
        for i, block in enumerate(self.blocks):
            x = block(x) + x
            if i % 2:
                outputs.append(self.heads[i // 2](x))
        return outputs


def build_model() -> nn.Module:
    return Net()


def features(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, FEATURES, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (features(4),)


def loss(output: list[Tensor], target: Tensor) -> list[Tensor]:
    return [F.cross_entropy(logits, target) for logits in output]


def train_data() -> TensorDataset:
    return TensorDataset(features(64), torch.arange(64) % CLASSES)
