"""Qwen2: as Llama, with biases and a tied output layer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset, TensorDataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.utils import ModelOutput

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def tokens(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (count, LENGTH), generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (tokens(4),)


def loss(output: ModelOutput, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def train_data() -> TensorDataset:
    return TensorDataset(tokens(64), tokens(64))


def example_inputs_with_labels() -> dict[str, Tensor]:
    return {"input_ids": tokens(4), "labels": tokens(4)}


def train_data_with_labels() -> StackDataset:
    return StackDataset(input_ids=tokens(64), labels=tokens(64))
