"""Wav2Vec2 with layer drop: in training each layer is left out at random, decided in Python."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset, TensorDataset
from transformers import Wav2Vec2Config, Wav2Vec2ForCTC
from transformers.utils import ModelOutput

VOCABULARY, SAMPLES, LENGTH = 32, 1600, 6


def build_model() -> nn.Module:
    config = Wav2Vec2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        conv_dim=(16, 16, 16),
        conv_stride=(5, 4, 2),
        conv_kernel=(10, 8, 4),
        num_feat_extract_layers=3,
        num_conv_pos_embeddings=16,
        num_conv_pos_embedding_groups=4,
        layerdrop=0.1,
        mask_time_prob=0.0,
        ctc_loss_reduction="mean",
        ctc_zero_infinity=True,
    )
    return Wav2Vec2ForCTC(config)


def sounds(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, SAMPLES, generator=generator)


def texts(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (sounds(4),)


def loss(output: ModelOutput, target: Tensor) -> Tensor:
    probabilities = F.log_softmax(output.logits, dim=-1).transpose(0, 1)
    frames = torch.full((target.size(0),), probabilities.size(0))
    letters = torch.full((target.size(0),), target.size(1))
    return F.ctc_loss(probabilities, target, frames, letters, zero_infinity=True)


def train_data() -> TensorDataset:
    return TensorDataset(sounds(64), texts(64))


def example_inputs_with_labels() -> dict[str, Tensor]:
    return {"input_values": sounds(4), "labels": texts(4)}


def train_data_with_labels() -> StackDataset:
    return StackDataset(input_values=sounds(64), labels=texts(64))
