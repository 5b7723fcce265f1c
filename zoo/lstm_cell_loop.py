"""A loop over time steps with an LSTMCell, its state made in forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

STEPS, FEATURES, WIDTH = 8, 6, 32


class Forecaster(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(FEATURES, WIDTH)
        self.cell = nn.LSTMCell(WIDTH, WIDTH)
        self.decode = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, FEATURES))

    def forward(self, series: Tensor) -> Tensor:
        hidden = series.new_zeros(series.size(0), WIDTH)
        state = torch.zeros(series.size(0), WIDTH, device=series.device)
        outputs = []
        for step in range(series.size(1)):
            hidden, state = self.cell(self.encode(series[:, step]), (hidden, state))
            outputs.append(self.decode(hidden))
        return torch.stack(outputs, dim=1)


def build_model() -> nn.Module:
    return Forecaster()


def series(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, STEPS + 1, FEATURES, generator=generator).cumsum(dim=1)


def example_inputs() -> tuple[Tensor, ...]:
    return (series(4)[:, :-1],)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(series(64)[:, :-1], series(64)[:, 1:])
