"""A custom autograd.Function: signs in the forward pass, straight through in the backward pass."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, FEATURES, WIDTH = 10, 48, 64


class Sign(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return torch.where(x < 0, -1.0, 1.0)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (x.abs() <= 1)


class BinaryBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(WIDTH)
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        weight = Sign.apply(self.linear.weight)
        signs = Sign.apply(self.norm(hidden))
        return hidden + F.linear(signs, weight, self.linear.bias) / WIDTH**0.5


class BinaryNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.blocks = nn.ModuleList(BinaryBlock() for _ in range(9))
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        hidden = self.embed(features)
        for block in self.blocks:
            hidden = block(hidden)
        return self.classifier(hidden)


def build_model() -> nn.Module:
    return BinaryNet()


def features(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, FEATURES, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (features(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(features(64), torch.arange(64) % CLASSES)
