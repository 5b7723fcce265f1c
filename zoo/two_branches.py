"""Two branches of convolutions, small and large kernels, that meet in the classifier."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, SIZE, CHANNELS = 10, 32, 16


def branch(kernel: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(5):
        convolution = nn.Conv2d(CHANNELS, CHANNELS, kernel, padding=kernel // 2)
        layers += [convolution, nn.BatchNorm2d(CHANNELS), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


class TwoBranches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, stride=2, padding=1)
        self.small, self.large = branch(1), branch(5)
        self.gate = nn.Linear(CHANNELS, 1)
        self.classifier = nn.Linear(2 * CHANNELS, CLASSES)

    def forward(self, image: Tensor) -> Tensor:
        stem = self.stem(image)
        small = self.small(stem).mean(dim=(2, 3))
        large = self.large(stem).mean(dim=(2, 3))
        gate = torch.sigmoid(self.gate(small))
        return self.classifier(torch.cat([gate * small, (1 - gate) * large], dim=1))


def build_model() -> nn.Module:
    return TwoBranches()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(images(64), torch.arange(64) % CLASSES)
