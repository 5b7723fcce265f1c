"""Gemma 3: two rotary bases, five sliding layers to one full one."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import Gemma3ForCausalLM, Gemma3TextConfig

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = Gemma3TextConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
    )
    return Gemma3ForCausalLM(config)


def sentences(count: int) -> dict[str, Tensor]:
    """Sentences of several lengths, padded at the end; padding has no label."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    lengths = LENGTH // 2 + torch.arange(count) % (LENGTH // 2 + 1)
    mask = torch.arange(LENGTH) < lengths[:, None]
    labels = tokens.masked_fill(~mask, -100)
    return {"input_ids": tokens, "attention_mask": mask.long(), "labels": labels}


def example_inputs() -> dict[str, Tensor]:
    return sentences(4)


def train_data() -> StackDataset:
    return StackDataset(**sentences(64))
