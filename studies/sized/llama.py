"""A Llama of width 4096 with DNIC_LAYERS layers; 32 are the 7B model. With labels."""

import os

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

LAYERS = int(os.environ.get("DNIC_LAYERS", "32"))


def build_model() -> nn.Module:
    """The model."""
    return LlamaForCausalLM(LlamaConfig(num_hidden_layers=LAYERS))


def example_inputs() -> dict[str, Tensor]:
    """Four samples."""
    tokens = torch.zeros(4, 2048, dtype=torch.long)
    return {"input_ids": tokens, "labels": tokens}
