"""RoFormer: rotary positions from a table that is frozen."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import RoFormerConfig, RoFormerForSequenceClassification

VOCABULARY, LENGTH, CLASSES = 97, 16, 5


def build_model() -> nn.Module:
    config = RoFormerConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=32,
        num_labels=CLASSES,
    )
    return RoFormerForSequenceClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    """Padded sentences."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < LENGTH // 2 + torch.arange(count)[:, None] % 9
    labels = torch.arange(count) % CLASSES
    return {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
