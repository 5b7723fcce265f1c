"""DistilBERT, with a classifier of tokens."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import DistilBertConfig, DistilBertForTokenClassification

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=32,
        hidden_dim=64,
        n_layers=8,
        n_heads=4,
        max_position_embeddings=32,
    )
    return DistilBertForTokenClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    """Padded sentences."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < LENGTH // 2 + torch.arange(count)[:, None] % 9
    labels = (tokens % 2).masked_fill(~mask, -100)
    return {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
