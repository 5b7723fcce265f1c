"""ViT-MAE: three quarters of the patches are masked at random and restored."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import ViTMAEConfig, ViTMAEForPreTraining

SIZE = 32


def build_model() -> nn.Module:
    config = ViTMAEConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        image_size=32,
        patch_size=8,
        decoder_hidden_size=16,
        decoder_intermediate_size=32,
        decoder_num_hidden_layers=4,
        decoder_num_attention_heads=4,
    )
    return ViTMAEForPreTraining(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(count, 3, SIZE, SIZE, generator=generator)}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
