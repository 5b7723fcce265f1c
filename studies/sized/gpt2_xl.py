"""GPT-2 XL: 48 layers of width 1600, 1.6 billion parameters, tied embedding, with labels."""

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel


def build_model() -> nn.Module:
    """The model."""
    return GPT2LMHeadModel(GPT2Config(n_embd=1600, n_layer=48, n_head=25))


def example_inputs() -> dict[str, Tensor]:
    """Four samples."""
    tokens = torch.zeros(4, 1024, dtype=torch.long)
    return {"input_ids": tokens, "labels": tokens}
