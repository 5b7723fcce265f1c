"""Eight residual blocks of 16 to 96 channels on maps of 32 x 32, with BatchNorm, batch 32."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu
from torch.utils.data import Dataset

from studies.predicted.common import CLASSES, random_data, size

BATCH = 32
CHANNELS = (16, 32, 64, 96)[size()]


class Block(nn.Module):
    """Two convolutions beside a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(CHANNELS)
        self.second = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        """Maps of the same shape."""
        inner = relu(self.norm1(self.first(x)))
        return relu(x + self.norm2(self.second(inner)))


class Net(nn.Module):
    """Stem, blocks, mean over the map, classes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, CHANNELS, 3, padding=1)
        self.blocks = nn.Sequential(*(Block() for _ in range(8)))
        self.classify = nn.Linear(CHANNELS, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores of each picture."""
        return self.classify(self.blocks(self.stem(x)).mean((2, 3)))


def build_model() -> nn.Module:
    """The model."""
    return Net()


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.randn(BATCH, 3, 32, 32),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy."""
    return cross_entropy(output, target)


def train_data() -> Dataset[tuple[Tensor, ...]]:
    """Random pictures."""
    return random_data(BATCH, 3, 32, 32)
