"""Question and answer through one embedding: the same module is called twice."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset

VOCABULARY, LENGTH, WIDTH = 97, 12, 32


def layers() -> nn.ModuleList:
    return nn.ModuleList(
        nn.TransformerEncoderLayer(WIDTH, 4, 64, batch_first=True) for _ in range(4)
    )


class Matcher(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.question, self.answer = layers(), layers()
        self.match = nn.Bilinear(WIDTH, WIDTH, 2)

    def forward(self, question: Tensor, answer: Tensor) -> Tensor:
        asked = self.words(question)
        for layer in self.question:
            asked = layer(asked)
        asked = asked.mean(dim=1)
        answered = self.words(answer) + asked[:, None]
        for layer in self.answer:
            answered = layer(answered)
        return self.match(asked, answered.mean(dim=1))


def build_model() -> nn.Module:
    return Matcher()


def tokens(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCABULARY, (count, LENGTH), generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return tokens(4, 0), tokens(4, 1)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> StackDataset:
    return StackDataset(StackDataset(tokens(64, 0), tokens(64, 1)), torch.arange(64) % 2)
