"""Handwritten digits, 8x8 pixels, with a fully connected network.

The images ship inside scikit-learn (`load_digits`: 1,797 of them, 10 classes), so this example
needs no download. A fixed quarter of them is kept for the test, with the same share of each class.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

BATCH_SIZE = 64
CLASSES = 10
WIDTH = 512
LAYERS = 6
TRAIN_SIZE = 21 * BATCH_SIZE  # No batch of a few samples: batch normalisation suffers from them.


class Layer(nn.Module):
    """`relu(norm(linear(x)))`, `[B, in_features]` to `[B, out_features]`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.norm = nn.BatchNorm1d(out_features)

    def forward(self, x: Tensor) -> Tensor:
        """The norm has the bias."""
        return F.relu(self.norm(self.linear(x)))


class DigitsNet(nn.Module):
    """Images `[B, 1, 8, 8]` in 0 to 1, to logits `[B, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        widths = [8 * 8] + [WIDTH] * LAYERS
        self.layers = nn.Sequential(*(Layer(a, b) for a, b in pairwise(widths)))
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, not probabilities."""
        return self.classifier(self.layers(images.flatten(1)))


def build_model() -> nn.Module:
    """The model; whoever calls seeds torch first."""
    return DigitsNet()


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.rand(BATCH_SIZE, 1, 8, 8),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy, averaged over the batch."""
    return F.cross_entropy(output, target)


def _split() -> tuple[TensorDataset, TensorDataset]:
    digits = load_digits()
    images = torch.from_numpy(digits.images / 16.0).float().unsqueeze(1)
    labels = torch.from_numpy(digits.target).long()
    train, test = train_test_split(
        range(len(labels)), train_size=TRAIN_SIZE, random_state=0, stratify=digits.target
    )
    return TensorDataset(images[train], labels[train]), TensorDataset(images[test], labels[test])


def train_data() -> TensorDataset:
    """1,344 pairs of an image `[1, 8, 8]`, float32 in 0 to 1, and its class, int64."""
    return _split()[0]


def test_data() -> TensorDataset:
    """453 pairs, none of them among `train_data()`."""
    return _split()[1]
