"""Blocks skipped at random in training, decided by a tensor without a Python branch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, SIZE, CHANNELS = 10, 32, 16


class Block(nn.Module):
    def __init__(self, keep: float) -> None:
        super().__init__()
        self.keep = keep
        self.conv1 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(CHANNELS), nn.BatchNorm2d(CHANNELS)
        self.conv2 = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)), inplace=True)))
        if self.training:
            shape = (x.shape[0],) + (1,) * (x.ndim - 1)
            y = y * torch.empty(shape, device=x.device).bernoulli_(self.keep) / self.keep
        return F.relu(x + y)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 4, stride=4)
        self.blocks = nn.ModuleList(Block(1 - 0.05 * i) for i in range(8))
        self.fc = nn.Linear(CHANNELS, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        x = self.stem(image)
        for block in self.blocks:
            x = block(x)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


def build_model() -> nn.Module:
    return Net()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(images(64), torch.arange(64) % CLASSES)
