"""SegFormer: a class for every pixel from four resolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import SegformerConfig, SegformerForSemanticSegmentation

CLASSES, SIZE = 10, 64


def build_model() -> nn.Module:
    config = SegformerConfig(
        hidden_sizes=[8, 16, 24, 32],
        depths=[2, 2, 2, 2],
        num_attention_heads=[1, 2, 3, 4],
        decoder_hidden_size=32,
        num_labels=CLASSES,
        drop_path_rate=0.1,
    )
    return SegformerForSemanticSegmentation(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    labels = torch.randint(CLASSES, (count, SIZE, SIZE), generator=generator)
    return {"pixel_values": images, "labels": labels}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
