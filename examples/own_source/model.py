"""Handwritten digits, and a source of gradients of one's own, which `source` registers.

Compile it with `interfaces: {default: {gradient: class_mean}}`; see README.md.
"""

from __future__ import annotations

import source  # noqa: F401  # registers class_mean
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

BATCH_SIZE = 64
TRAIN_SIZE = 21 * BATCH_SIZE


def build_model() -> nn.Module:
    """Images `[B, 64]` to logits `[B, 10]`."""
    return nn.Sequential(
        nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.rand(BATCH_SIZE, 64),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Mean over the batch."""
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    """1,344 images."""
    return _data(slice(None, TRAIN_SIZE))


def test_data() -> TensorDataset:
    """The other 453."""
    return _data(slice(TRAIN_SIZE, None))


def _data(part: slice) -> TensorDataset:
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))[part]
    images = torch.from_numpy(digits.data).float() / 16
    return TensorDataset(images[order], torch.from_numpy(digits.target).long()[order])
