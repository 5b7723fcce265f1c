"""torch's own attention with a key padding mask, and a class token."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

VOCABULARY, LENGTH, WIDTH, CLASSES = 97, 16, 32, 5


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH, padding_idx=0)
        self.cls = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.attentions = nn.ModuleList(
            nn.MultiheadAttention(WIDTH, 4, batch_first=True) for _ in range(8)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(WIDTH) for _ in range(8))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        x = torch.cat([self.cls.expand(len(tokens), -1, -1), self.words(tokens)], dim=1)
        padding = F.pad(tokens == 0, (1, 0), value=False)
        for attention, norm in zip(self.attentions, self.norms, strict=True):
            x = norm(x + attention(x, x, x, key_padding_mask=padding, need_weights=False)[0])
        return self.head(x[:, 0])


def build_model() -> nn.Module:
    return Encoder()


def tokens(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randint(1, VOCABULARY, (count, LENGTH), generator=generator)
    return drawn * (torch.arange(LENGTH) < 8 + torch.arange(count)[:, None] % 9)


def example_inputs() -> tuple[Tensor, ...]:
    return (tokens(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(tokens(64), torch.arange(64) % CLASSES)
