"""Module lists within module lists and a module dict, walked by Python loops."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, FEATURES, WIDTH = 10, 32, 48


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.groups = nn.ModuleList(
            nn.ModuleList(
                nn.ModuleDict({"norm": nn.LayerNorm(WIDTH), "mix": nn.Linear(WIDTH, WIDTH)})
                for _ in range(3)
            )
            for _ in range(3)
        )
        self.heads = nn.ModuleDict({"class": nn.Linear(WIDTH, CLASSES)})

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.embed(features)
        for group in self.groups:
            kept = hidden
            for layer in group:
                hidden = F.gelu(layer["mix"](layer["norm"](hidden)))
            hidden = hidden + kept
        return self.heads["class"](hidden)


def build_model() -> nn.Module:
    return Nested()


def features(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, FEATURES, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (features(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(features(64), torch.arange(64) % CLASSES)
