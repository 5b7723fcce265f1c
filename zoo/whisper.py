"""Whisper: text from log-mel spectrograms, encoder and decoder."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import WhisperConfig, WhisperForConditionalGeneration
from transformers.utils import ModelOutput

VOCABULARY, MELS, FRAMES, LENGTH = 97, 16, 64, 12


def build_model() -> nn.Module:
    config = WhisperConfig(
        vocab_size=VOCABULARY,
        num_mel_bins=MELS,
        max_source_positions=FRAMES // 2,
        max_target_positions=32,
        d_model=32,
        encoder_layers=6,
        decoder_layers=6,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
        decoder_start_token_id=2,
    )
    return WhisperForConditionalGeneration(config)


def sounds(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, MELS, FRAMES, generator=generator)


def texts(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, VOCABULARY, (count, LENGTH), generator=generator)


def inputs(count: int) -> dict[str, Tensor]:
    before = F.pad(texts(count)[:, :-1], (1, 0), value=2)
    return {"input_features": sounds(count), "decoder_input_ids": before}


def example_inputs() -> dict[str, Tensor]:
    return inputs(4)


def loss(output: ModelOutput, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits.flatten(0, 1), target.flatten())


def train_data() -> StackDataset:
    return StackDataset(StackDataset(**inputs(64)), texts(64))


def example_inputs_with_labels() -> dict[str, Tensor]:
    return {"input_features": sounds(4), "labels": texts(4)}


def train_data_with_labels() -> StackDataset:
    return StackDataset(input_features=sounds(64), labels=texts(64))
