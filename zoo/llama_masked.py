"""Llama with padded sentences: the attention mask is real."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.utils import ModelOutput

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=8,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return LlamaForCausalLM(config)


def sentences(count: int) -> dict[str, Tensor]:
    """Sentences of 8 to 16 tokens, padded at the end."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCABULARY, (count, LENGTH), generator=generator)
    mask = torch.arange(LENGTH) < 8 + torch.arange(count)[:, None] % 9
    return {"input_ids": tokens, "attention_mask": mask.long()}


def labels(count: int) -> Tensor:
    inputs = sentences(count)
    return inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)


def example_inputs() -> dict[str, Tensor]:
    return sentences(4)


def loss(output: ModelOutput, target: Tensor) -> Tensor:
    return F.cross_entropy(output.logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def train_data() -> StackDataset:
    return StackDataset(StackDataset(**sentences(64)), labels(64))


def example_inputs_with_labels() -> dict[str, Tensor]:
    return {**sentences(4), "labels": labels(4)}


def train_data_with_labels() -> StackDataset:
    return StackDataset(**sentences(64), labels=labels(64))
