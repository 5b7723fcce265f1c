"""ConvNeXt: depthwise convolutions, layer scale."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import ConvNextConfig, ConvNextForImageClassification

CLASSES, SIZE = 10, 64


def build_model() -> nn.Module:
    config = ConvNextConfig(
        hidden_sizes=[16, 32, 48, 64],
        depths=[2, 2, 4, 2],
        num_labels=CLASSES,
        drop_path_rate=0.1,
    )
    return ConvNextForImageClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    return {"pixel_values": images, "labels": torch.arange(count) % CLASSES}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
