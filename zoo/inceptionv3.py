"""Inception v3 of pytorchcv: parallel branches that are concatenated."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorchcv.models.inceptionv3 import inceptionv3
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, SIZE = 10, 96


def build_model() -> nn.Module:
    model = inceptionv3(num_classes=CLASSES, in_size=(SIZE, SIZE))
    model.features.final_pool = nn.AdaptiveAvgPool2d(1)  # The original is made for 224 x 224.
    return model


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(images(64), torch.arange(64) % CLASSES)
