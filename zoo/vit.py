"""Vision transformer: a class token in front of the patches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset, TensorDataset
from transformers import ViTConfig, ViTForImageClassification
from transformers.utils import ModelOutput

CLASSES, SIZE = 10, 32


def build_model() -> nn.Module:
    config = ViTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        image_size=SIZE,
        patch_size=8,
        hidden_dropout_prob=0.1,
        num_labels=CLASSES,
    )
    return ViTForImageClassification(config)


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
