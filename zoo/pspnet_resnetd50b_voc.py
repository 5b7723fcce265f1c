"""PSPNet of pytorchcv: pooling at four scales, and a second output for an auxiliary loss."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pytorchcv.models.pspnet import pspnet_resnetd50b_voc
from torch import Tensor, nn
from torch.utils.data import TensorDataset

CLASSES, SIZE = 10, 64


def build_model() -> nn.Module:
    return pspnet_resnetd50b_voc(num_classes=CLASSES, in_size=(SIZE, SIZE))


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: tuple[Tensor, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    main, auxiliary = output
    return F.cross_entropy(main, target), 0.4 * F.cross_entropy(auxiliary, target)


def train_data() -> TensorDataset:
    classes = torch.arange(64 * SIZE * SIZE).reshape(64, SIZE, SIZE) % CLASSES
    return TensorDataset(images(64), classes)
