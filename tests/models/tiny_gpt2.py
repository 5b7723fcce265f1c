"""A GPT-2 of two layers, whose output layer is tied to its embedding."""

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel


def build_model() -> nn.Module:
    return GPT2LMHeadModel(
        GPT2Config(vocab_size=48, n_positions=32, n_embd=16, n_layer=2, n_head=2)
    )


def example_inputs() -> dict[str, Tensor]:
    return {"input_ids": torch.randint(0, 48, (3, 8))}


def loss(output: dict[str, Tensor], target: Tensor) -> Tensor:
    logits = output["logits"].flatten(0, 1)
    return nn.functional.cross_entropy(logits, target.flatten())
