"""A small convolutional net: convolutions of 5 x 5, BatchNorm, rectifier, pooling, two linear ones.

The paper's is described by its layers alone (Jaderberg et al. 2016, arXiv 1608.05343, section
3.1); channels are fewer here, for a CPU. `DNIC_LAYERS` counts layers with weights, 3 or 4: one or
two convolutions, a hidden linear layer of 128, the classifier. Batch 128.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from studies.learning.models.images import CLASSES, images

BATCH = 128
CHANNELS = 16
HIDDEN = 128
CONVOLUTIONS = int(os.environ.get("DNIC_LAYERS", "4")) - 2


class Convolution(nn.Module):
    """Convolution, norm, rectifier, half the size: `[B, C, H, W]` to `[B, 16, H / 2, W / 2]`."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(channels, CHANNELS, 5, padding=2, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled before the rectifier, which is the same and less work."""
        return F.relu(F.max_pool2d(self.norm(self.convolve(x)), 2))


class Hidden(nn.Module):
    """`relu(norm(linear(maps)))`, `[B, C, H, W]` to `[B, 128]`."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.linear = nn.Linear(CHANNELS * side * side, HIDDEN, bias=False)
        self.norm = nn.BatchNorm1d(HIDDEN)

    def forward(self, maps: Tensor) -> Tensor:
        """The norm has the bias."""
        return F.relu(self.norm(self.linear(maps.flatten(1))))


class Convolutional(nn.Module):
    """Images `[B, 1, 28, 28]` to logits `[B, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        parts: list[nn.Module] = [
            Convolution(CHANNELS if depth else 1) for depth in range(CONVOLUTIONS)
        ]
        self.layers = nn.Sequential(*parts, Hidden(28 // 2**CONVOLUTIONS))
        self.classify = nn.Linear(HIDDEN, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.classify(self.layers(images))


def build_model() -> nn.Module:
    """The model."""
    return Convolutional()


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.rand(BATCH, 1, 28, 28),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy."""
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    """Images and classes."""
    return images("train")


def test_data() -> TensorDataset:
    """The same, held out."""
    return images("test")
