"""DPN-68 of pytorchcv: a residual and a dense path that run side by side as tuples."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorchcv.models.dpn import dpn68
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, SIZE = 10, 224


def build_model() -> nn.Module:
    return dpn68(num_classes=CLASSES, in_size=(SIZE, SIZE))


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(images(64), torch.arange(64) % CLASSES)
