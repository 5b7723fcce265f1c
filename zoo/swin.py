"""Swin transformer: shifted windows, patches merged between levels, stochastic depth."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset, TensorDataset
from transformers import SwinConfig, SwinForImageClassification
from transformers.utils import ModelOutput

CLASSES, SIZE = 10, 64


def build_model() -> nn.Module:
    config = SwinConfig(
        image_size=SIZE,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2, 4, 2],
        num_heads=[1, 2, 4, 4],
        window_size=4,
        drop_path_rate=0.1,
        num_labels=CLASSES,
    )
    return SwinForImageClassification(config)


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, 3, SIZE, SIZE, generator=generator)


def classes(count: int) -> Tensor:
    return torch.arange(count) % CLASSES


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: ModelOutput, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits, target)


def train_data() -> TensorDataset:
    return TensorDataset(images(64), classes(64))


def example_inputs_with_labels() -> dict[str, Tensor]:
    return {"pixel_values": images(4), "labels": classes(4)}


def train_data_with_labels() -> StackDataset:
    return StackDataset(pixel_values=images(64), labels=classes(64))
