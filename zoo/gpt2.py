"""GPT-2: the output layer is tied to the embedding; learned positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset, TensorDataset
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.utils import ModelOutput

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=32,
        n_embd=32,
        n_layer=8,
        n_head=4,
        bos_token_id=0,
        eos_token_id=0,
    )
    return GPT2LMHeadModel(config)


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
