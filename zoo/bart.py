"""BART: encoder and decoder with one embedding; the labels shifted inside."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import BartConfig, BartForConditionalGeneration

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=32,
        pad_token_id=1,
        decoder_start_token_id=2,
    )
    return BartForConditionalGeneration(config)


def samples(count: int) -> dict[str, Tensor]:
    """Padded sentences and their translations."""
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(3, VOCABULARY, (count, LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < LENGTH // 2 + torch.arange(count)[:, None] % 9
    labels = torch.randint(3, VOCABULARY, (count, 12), generator=generator)
    return {"input_ids": source, "attention_mask": mask.long(), "labels": labels}


def example_inputs() -> dict[str, Tensor]:
    return samples(4)


def train_data() -> StackDataset:
    return StackDataset(**samples(64))
