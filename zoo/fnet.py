"""FNet: Fourier transforms in place of attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import FNetConfig, FNetForSequenceClassification

VOCABULARY, LENGTH, CLASSES = 97, 16, 5


def build_model() -> nn.Module:
    config = FNetConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        max_position_embeddings=32,
        num_labels=CLASSES,
    )
    return FNetForSequenceClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    return {"input_ids": tokens, "labels": torch.arange(count) % CLASSES}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
