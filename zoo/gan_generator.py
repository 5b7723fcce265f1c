"""A generator of images and of their masks: two outputs from one body."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

NOISE, CHANNELS = 24, 16


def larger(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(
        nn.ConvTranspose2d(inside, outside, 4, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(outside),
        nn.LeakyReLU(0.2, inplace=True),
    )


class Generator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(NOISE, 4 * CHANNELS * 4 * 4)
        self.body = nn.Sequential(
            larger(4 * CHANNELS, 2 * CHANNELS), larger(2 * CHANNELS, CHANNELS), larger(CHANNELS, 8)
        )
        self.image = nn.Conv2d(8, 3, 3, padding=1)
        self.mask = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, noise: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.project(noise).view(-1, 4 * CHANNELS, 4, 4)
        hidden = self.body(hidden)
        return torch.tanh(self.image(hidden)), torch.sigmoid(self.mask(hidden))


def build_model() -> nn.Module:
    return Generator()


def noise(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, NOISE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (noise(4),)


def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    image, mask = output
    return F.l1_loss(image * mask, target)


def train_data() -> TensorDataset:
    return TensorDataset(noise(64), torch.zeros(64, 3, 32, 32))
