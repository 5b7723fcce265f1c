"""Translation with torch's own nn.Transformer: masks of both sides, padding included."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset

VOCABULARY, LENGTH, WIDTH = 97, 12, 32


class Translator(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.source = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.target = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.position = nn.Parameter(torch.randn(LENGTH, WIDTH) * 0.02)
        self.transformer = nn.Transformer(WIDTH, 4, 5, 5, 64, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        steps = torch.arange(target.size(1), device=target.device)
        padding = source == 0
        hidden = self.transformer(
            self.source(source) + self.position[: source.size(1)],
            self.target(target) + self.position[: target.size(1)],
            tgt_mask=steps[:, None] < steps,
            src_key_padding_mask=padding,
            memory_key_padding_mask=padding,
        )
        return self.head(hidden)


def build_model() -> nn.Module:
    return Translator()


def pairs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    source = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    target = torch.randint(1, VOCABULARY, (count, LENGTH + 1), generator=generator)
    padding = torch.arange(LENGTH) >= 6 + torch.arange(count)[:, None] % 7
    return source.masked_fill(padding, 0), target


def example_inputs() -> tuple[Tensor, ...]:
    source, target = pairs(4)
    return source, target[:, :-1]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def train_data() -> StackDataset:
    source, target = pairs(64)
    return StackDataset(StackDataset(source, target[:, :-1]), target[:, 1:])
