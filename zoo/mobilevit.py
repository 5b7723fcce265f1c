"""MobileViT: convolutions, and transformers over unfolded patches."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import MobileViTConfig, MobileViTForImageClassification

CLASSES, SIZE = 10, 64


def build_model() -> nn.Module:
    config = MobileViTConfig(
        hidden_sizes=[16, 24, 32],
        neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 48],
        num_attention_heads=4,
        image_size=64,
        num_labels=CLASSES,
    )
    return MobileViTForImageClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return {"pixel_values": images, "labels": torch.arange(count) % CLASSES}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
