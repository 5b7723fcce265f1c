"""Eight equal linear layers of width 1024, batch 256: a model that two stages divide evenly."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from studies.predicted.common import CLASSES, random_data

BATCH = 256
WIDTH = 1024


def build_model() -> nn.Module:
    """The model."""
    layers: list[nn.Module] = []
    for _ in range(8):
        layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(WIDTH, CLASSES))


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.randn(BATCH, WIDTH),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy."""
    return cross_entropy(output, target)


def train_data() -> Dataset[tuple[Tensor, ...]]:
    """Random vectors."""
    return random_data(BATCH, WIDTH)
