"""A mixture of experts by hand: every expert runs on the tokens sent to it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

WIDTH, FEATURES, CLASSES, EXPERTS = 32, 24, 6, 4


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 48), nn.ReLU(), nn.Linear(48, WIDTH))
            for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(dim=-1)
        chosen = weights.argmax(dim=-1)
        result = torch.zeros_like(x)
        for number, expert in enumerate(self.experts):
            rows = torch.where(chosen == number)[0]
            if rows.numel() > 0:
                result[rows] = weights[rows, number, None] * expert(x[rows])
        return x + result


class MoE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.layers = nn.Sequential(*(Experts() for _ in range(8)))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.layers(self.embed(features)))


def build_model() -> nn.Module:
    return MoE()


def features(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, FEATURES, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (features(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(features(64), torch.arange(64) % CLASSES)
