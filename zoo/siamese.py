"""A Siamese network: one tower called on both images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset

SIZE, CHANNELS = 32, 8


class Siamese(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1)]
        for _ in range(3):
            layers += [nn.ReLU(), nn.BatchNorm2d(CHANNELS), nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)]
        self.tower = nn.Sequential(*layers, nn.Flatten(), nn.Linear(16 * CHANNELS, 24))
        self.compare = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        difference = self.tower(first) - self.tower(second)
        return self.compare(difference.abs()).squeeze(1)


def build_model() -> nn.Module:
    return Siamese()


def images(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return images(4, 0), images(4, 1)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target)


def train_data() -> StackDataset:
    return StackDataset(StackDataset(images(64, 0), images(64, 1)), torch.arange(64) % 2 * 1.0)
