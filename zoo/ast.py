"""Audio spectrogram transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import ASTConfig, ASTForAudioClassification

CLASSES = 10


def build_model() -> nn.Module:
    config = ASTConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        patch_size=8,
        frequency_stride=8,
        time_stride=8,
        max_length=64,
        num_mel_bins=32,
        num_labels=CLASSES,
    )
    return ASTForAudioClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    spectrograms = torch.randn(count, 64, 32, generator=generator)
    return {"input_values": spectrograms, "labels": torch.arange(count) % CLASSES}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
