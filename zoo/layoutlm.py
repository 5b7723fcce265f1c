"""LayoutLM: the place of every word on the page is embedded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import LayoutLMConfig, LayoutLMForTokenClassification

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = LayoutLMConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=32,
        max_2d_position_embeddings=128,
    )
    return LayoutLMForTokenClassification(config)


def samples(count: int) -> dict[str, Tensor]:
    """Words, and the boxes that they stand in."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    corners = torch.randint(64, (count, LENGTH, 2), generator=generator)
    boxes = torch.cat([corners, corners + 8], dim=-1)
    return {"input_ids": tokens, "bbox": boxes, "labels": tokens % 2}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
