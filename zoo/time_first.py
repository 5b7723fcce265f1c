"""Time first: the batch is the second axis inside, transposed on the way in and out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

STEPS, FEATURES, WIDTH = 12, 6, 32


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 4, dropout=0.1)
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:  # [T, B, C]
        attended, _ = self.attention(x, x, x)
        x = self.norm1(x + attended)
        mixed = self.conv(x.permute(1, 2, 0)).permute(2, 0, 1)
        return self.norm2(x + F.relu(mixed))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.layers = nn.ModuleList(Layer() for _ in range(6))
        self.rnn = nn.GRU(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, FEATURES)

    def forward(self, series: Tensor) -> Tensor:
        x = self.embed(series).transpose(0, 1)
        for layer in self.layers:
            x = layer(x)
        x, last = self.rnn(x)
        return self.head(x + last).transpose(0, 1)


def build_model() -> nn.Module:
    return Model()


def series(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, STEPS + 1, FEATURES, generator=generator).cumsum(dim=1)


def example_inputs() -> tuple[Tensor, ...]:
    return (series(4)[:, :-1],)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(series(64)[:, :-1], series(64)[:, 1:])
