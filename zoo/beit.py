"""BEiT: relative position biases in every layer, stochastic depth."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import BeitConfig, BeitForImageClassification

CLASSES, SIZE = 10, 32


def build_model() -> nn.Module:
    config = BeitConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        num_labels=CLASSES,
        use_relative_position_bias=True,
        drop_path_rate=0.1,
    )
    return BeitForImageClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return {"pixel_values": images, "labels": torch.arange(count) % CLASSES}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
