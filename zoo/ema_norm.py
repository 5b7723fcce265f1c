"""A buffer that follows the activations: updated in forward, in train mode only."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, FEATURES, WIDTH = 10, 32, 48


class RunningNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))
        self.gain = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.mean = 0.9 * self.mean + 0.1 * x.mean(dim=0)
                self.calls += 1
        return (x - self.mean) * self.gain


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.norms = nn.ModuleList(RunningNorm() for _ in range(6))
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH) for _ in range(6))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        x = self.embed(features)
        for norm, layer in zip(self.norms, self.layers, strict=True):
            x = x + F.relu(layer(norm(x)))
        return self.head(x)


def build_model() -> nn.Module:
    return Net()


def features(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, FEATURES, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (features(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(features(64), torch.arange(64) % CLASSES)
