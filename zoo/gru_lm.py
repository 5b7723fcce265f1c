"""A bidirectional GRU over packed sentences of several lengths, as a tagger."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence
from torch.utils.data import StackDataset

VOCABULARY, LENGTH, WIDTH, TAGS = 97, 16, 32, 5


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.gru = nn.GRU(WIDTH, WIDTH, num_layers=2, bidirectional=True, batch_first=True)
        self.mix = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH))
        self.tags = nn.Linear(WIDTH, TAGS)

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        words = self.embedding(tokens)
        packed = pack_padded_sequence(words, lengths.cpu(), batch_first=True, enforce_sorted=False)
        output, _ = self.gru(packed)
        hidden, _ = pad_packed_sequence(output, batch_first=True, total_length=tokens.size(1))
        return self.tags(self.mix(hidden))


def build_model() -> nn.Module:
    return Tagger()


def sentences(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    lengths = 8 + torch.arange(count) % 9
    return tokens * (torch.arange(LENGTH) < lengths[:, None]), lengths


def example_inputs() -> tuple[Tensor, ...]:
    return sentences(4)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten(), ignore_index=0)


def train_data() -> StackDataset:
    tokens, lengths = sentences(64)
    return StackDataset(StackDataset(tokens, lengths), tokens % TAGS)
