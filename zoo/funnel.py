"""Funnel: the sequence is pooled between blocks, then repeated."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import FunnelConfig, FunnelForTokenClassification

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = FunnelConfig(
        vocab_size=VOCABULARY,
        block_sizes=[3, 3, 2],
        num_decoder_layers=2,
        d_model=32,
        n_head=4,
        d_head=8,
        d_inner=64,
    )
    return FunnelForTokenClassification(config)


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
