"""The paper's fully connected net: layers of 256 units, each with BatchNorm and a rectifier.

Jaderberg et al. 2016 (arXiv 1608.05343), section 3.1. `DNIC_LAYERS` counts layers with weights,
the classifier among them; `DNIC_WIDTH` sets another width. Batch 256.
"""

from __future__ import annotations

import os
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

from studies.learning.models.images import CLASSES, images

BATCH = 256
WIDTH = int(os.environ.get("DNIC_WIDTH", "256"))
LAYERS = int(os.environ.get("DNIC_LAYERS", "6"))


class Layer(nn.Module):
    """`relu(norm(linear(x)))`, `[B, in_features]` to `[B, out_features]`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.norm = nn.BatchNorm1d(out_features)

    def forward(self, x: Tensor) -> Tensor:
        """The norm has the bias."""
        return F.relu(self.norm(self.linear(x)))


class Connected(nn.Module):
    """Images `[B, 1, 28, 28]` to logits `[B, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        widths = [28 * 28] + [WIDTH] * (LAYERS - 1)
        self.layers = nn.Sequential(*(Layer(a, b) for a, b in pairwise(widths)))
        self.classify = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return self.classify(self.layers(images.flatten(1)))


def build_model() -> nn.Module:
    """The model."""
    return Connected()


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
