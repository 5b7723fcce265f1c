"""Perceiver: a few latents look at all bytes of a text."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import PerceiverConfig, PerceiverForSequenceClassification

CLASSES = 5


def build_model() -> nn.Module:
    config = PerceiverConfig(
        vocab_size=97,
        num_latents=8,
        d_latents=32,
        d_model=24,
        num_blocks=1,
        num_self_attends_per_block=8,
        num_self_attention_heads=4,
        num_cross_attention_heads=4,
        max_position_embeddings=32,
        num_labels=CLASSES,
    )
    return PerceiverForSequenceClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(97, (count, 16), generator=generator)
    return {"inputs": text, "labels": torch.arange(count) % CLASSES}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
