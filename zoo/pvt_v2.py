"""Pyramid vision transformer v2: keys and values from a smaller image."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import PvtV2Config, PvtV2ForImageClassification

CLASSES, SIZE = 10, 64


def build_model() -> nn.Module:
    config = PvtV2Config(
        hidden_sizes=[8, 16, 24, 32],
        depths=[2, 2, 2, 2],
        num_attention_heads=[1, 2, 3, 4],
        num_labels=CLASSES,
        image_size=64,
    )
    return PvtV2ForImageClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return {"pixel_values": images, "labels": torch.arange(count) % CLASSES}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
