"""ELECTRA as a reader: the places where an answer starts and ends."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import ElectraConfig, ElectraForQuestionAnswering

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = ElectraConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        max_position_embeddings=32,
        embedding_size=16,
    )
    return ElectraForQuestionAnswering(config)


def samples(count: int) -> dict[str, Tensor]:
    """Padded sentences."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < LENGTH // 2 + torch.arange(count)[:, None] % 9
    starts = torch.arange(count) % 8
    return {
        "input_ids": tokens,
        "attention_mask": mask.long(),
        "start_positions": starts,
        "end_positions": starts + 2,
    }


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
