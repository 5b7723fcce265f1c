"""A language model of stacked LSTMs with dropout between them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

VOCABULARY, LENGTH, WIDTH = 97, 16, 32


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(nn.LSTM(WIDTH, WIDTH, batch_first=True) for _ in range(4))
        self.dropout = nn.Dropout(0.2)
        self.decoder = nn.Linear(WIDTH, VOCABULARY)
        self.decoder.weight = self.embedding.weight

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.dropout(self.embedding(tokens))
        for layer in self.layers:
            hidden, _ = layer(hidden)
            hidden = self.dropout(hidden)
        return self.decoder(hidden)


def build_model() -> nn.Module:
    return LanguageModel()


def tokens(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (count, LENGTH), generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (tokens(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def train_data() -> TensorDataset:
    return TensorDataset(tokens(64), tokens(64))
