"""PatchTST: series cut into patches, one channel at a time."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import PatchTSTConfig, PatchTSTForPrediction


def build_model() -> nn.Module:
    config = PatchTSTConfig(
        num_input_channels=3,
        context_length=64,
        patch_length=8,
        patch_stride=8,
        prediction_length=8,
        d_model=32,
        num_hidden_layers=8,
        num_attention_heads=4,
        ffn_dim=64,
        loss="mse",
        use_cls_token=False,
    )
    return PatchTSTForPrediction(config)


def samples(count: int) -> dict[str, Tensor]:
    """Random walks: 64 steps and the 8 that follow."""
    generator = torch.Generator().manual_seed(0)
    series = torch.randn(count, 72, 3, generator=generator).cumsum(dim=1)
    return {"past_values": series[:, :64], "future_values": series[:, 64:]}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
