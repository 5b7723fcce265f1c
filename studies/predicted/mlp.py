"""Eight linear layers of width 256 to 1536, batch 256."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from studies.predicted.common import CLASSES, random_data, size

BATCH = 256
INPUTS = 256
WIDTH = (256, 512, 1024, 1536)[size()]


def build_model() -> nn.Module:
    """The model."""
    layers: list[nn.Module] = []
    width = INPUTS
    for _ in range(8):
        layers += [nn.Linear(width, WIDTH), nn.ReLU()]
        width = WIDTH
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.randn(BATCH, INPUTS),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy."""
    return cross_entropy(output, target)


def train_data() -> Dataset[tuple[Tensor, ...]]:
    """Random vectors."""
    return random_data(BATCH, INPUTS)
