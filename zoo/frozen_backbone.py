"""Fine tuning: a frozen backbone that stays in eval mode under a head that learns."""

from __future__ import annotations

from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, SIZE, CHANNELS = 10, 32, 16


def layer(stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(CHANNELS, CHANNELS, 3, stride, 1, bias=False),
        nn.BatchNorm2d(CHANNELS),
        nn.ReLU(),
    )


class FineTuned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.backbone = nn.Sequential(layer(2), layer(1), layer(1), layer(1))
        for parameter in [*self.stem.parameters(), *self.backbone.parameters()]:
            parameter.requires_grad = False
        self.neck = nn.Sequential(layer(2), layer(1), layer(1), layer(1))
        self.head = nn.Linear(CHANNELS, CLASSES)

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.backbone.eval()  # Its statistics are as frozen as its weights.
        return self

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.neck(self.backbone(self.stem(image)))
        return self.head(hidden.mean(dim=(2, 3)))


def build_model() -> nn.Module:
    return FineTuned()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(images(64), torch.arange(64) % CLASSES)
