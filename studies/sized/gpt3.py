"""GPT-3: 96 layers of width 12288, 175 billion parameters, tied embedding, with labels."""

import os

import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

LAYERS = int(os.environ.get("DNIC_LAYERS", "96"))
SEQUENCES = 8
POSITIONS = 2048


def build_model() -> nn.Module:
    """The model; 96 heads and 2048 positions as in Brown et al. 2020, arXiv 2005.14165."""
    config = GPT2Config(n_embd=12288, n_layer=LAYERS, n_head=96, n_positions=POSITIONS)
    return GPT2LMHeadModel(config)


def example_inputs() -> dict[str, Tensor]:
    """A batch of eight sequences: what a stage of one device can hold."""
    tokens = torch.zeros(SEQUENCES, POSITIONS, dtype=torch.long)
    return {"input_ids": tokens, "labels": tokens}
