"""A decoder of x-transformers with rotary positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset
from x_transformers import Decoder, TransformerWrapper

VOCABULARY, LENGTH = 97, 16


def build_model() -> nn.Module:
    layers = Decoder(dim=32, depth=8, heads=2, attn_dim_head=64, rotary_pos_emb=True)
    return TransformerWrapper(num_tokens=VOCABULARY, max_seq_len=LENGTH, attn_layers=layers)


def tokens(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (count, LENGTH), generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (tokens(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def train_data() -> TensorDataset:
    return TensorDataset(tokens(64), tokens(64))
