"""A small residual net with BatchNorm: a stem that halves the image, six blocks, mean, classes.

Blocks as in He et al. 2016 (arXiv 1512.03385), two convolutions each; 16 channels on maps of
14 x 14, from the fourth block on 32 on 7 x 7. Batch 128.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from studies.learning.models.images import CLASSES, images

BATCH = 128
CHANNELS = (16, 16, 16, 32, 32, 32)


class Stem(nn.Module):
    """`[B, 1, 28, 28]` to `[B, 16, 14, 14]`."""

    def __init__(self) -> None:
        super().__init__()
        self.convolve = nn.Conv2d(1, CHANNELS[0], 3, stride=2, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS[0])

    def forward(self, x: Tensor) -> Tensor:
        """Convolution, norm, rectifier."""
        return F.relu(self.norm(self.convolve(x)))


class Block(nn.Module):
    """Two convolutions beside a shortcut; where channels double, maps halve."""

    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        stride = after // before
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(after)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Conv2d(before, after, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Maps, as many as the block has channels."""
        inner = F.relu(self.norm1(self.first(x)))
        return F.relu(self.shortcut(x) + self.norm2(self.second(inner)))


class Residual(nn.Module):
    """Images `[B, 1, 28, 28]` to logits `[B, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()
        before = (CHANNELS[0], *CHANNELS[:-1])
        self.blocks = nn.Sequential(*map(Block, before, CHANNELS))
        self.classify = nn.Linear(CHANNELS[-1], CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.classify(self.blocks(self.stem(images)).mean((2, 3)))


def build_model() -> nn.Module:
    """The model."""
    return Residual()


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
