"""Weight norm and spectral norm as parametrizations."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.data import TensorDataset

CLASSES, SIZE, CHANNELS = 10, 32, 12


def layer(stride: int, spectral: bool) -> nn.Sequential:
    convolution = nn.Conv2d(CHANNELS, CHANNELS, 3, stride, 1)
    normed = spectral_norm(convolution) if spectral else weight_norm(convolution)
    return nn.Sequential(normed, nn.LeakyReLU(0.1))


class Discriminator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = spectral_norm(nn.Conv2d(3, CHANNELS, 3, padding=1))
        self.layers = nn.Sequential(*(layer(1 + i % 2, i < 3) for i in range(6)))
        self.classifier = weight_norm(nn.Linear(CHANNELS, CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        return self.classifier(self.layers(self.stem(image)).mean(dim=(2, 3)))


def build_model() -> nn.Module:
    return Discriminator()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(images(64), torch.arange(64) % CLASSES)
