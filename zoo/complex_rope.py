"""Llama as its authors wrote it: rotary positions as complex numbers, a table in a buffer."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

VOCABULARY, LENGTH, WIDTH, HEADS = 97, 16, 32, 4


def rotated(x: Tensor, rotations: Tensor) -> Tensor:
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * rotations[None, :, None, :]).flatten(3).type_as(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wq, self.wk = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.wv, self.wo = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: Tensor, rotations: Tensor, mask: Tensor | None) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = (w(x).view(batch, length, HEADS, -1) for w in (self.wq, self.wk, self.wv))
        q, k = rotated(q, rotations), rotated(k, rotations)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        scores = q @ k.transpose(2, 3) / (WIDTH // HEADS) ** 0.5
        if mask is not None:
            scores = scores + mask
        y = F.softmax(scores.float(), dim=-1).type_as(q) @ v
        return self.wo(y.transpose(1, 2).contiguous().view(batch, length, -1))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(WIDTH), nn.RMSNorm(WIDTH)
        self.attention = Attention()
        self.w1, self.w2 = nn.Linear(WIDTH, 64), nn.Linear(64, WIDTH)
        self.w3 = nn.Linear(WIDTH, 64)

    def forward(self, x: Tensor, rotations: Tensor, mask: Tensor | None) -> Tensor:
        x = x + self.attention(self.norm1(x), rotations, mask)
        h = self.norm2(x)
        return x + self.w2(F.silu(self.w1(h)) * self.w3(h))


class Transformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.layers = nn.ModuleList(Block() for _ in range(8))
        self.norm = nn.RMSNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)
        size = WIDTH // HEADS
        angles = torch.outer(torch.arange(2 * LENGTH), 1e4 ** -(torch.arange(0, size, 2) / size))
        rotations = torch.polar(torch.ones_like(angles), angles)
        self.register_buffer("rotations", rotations, persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        length = tokens.shape[1]
        h = self.embedding(tokens)
        rotations = self.rotations[:length]
        mask = None
        if length > 1:
            mask = torch.full((length, length), float("-inf"), device=tokens.device)
            mask = torch.triu(mask, diagonal=1)
        for layer in self.layers:
            h = layer(h, rotations, mask)
        return self.output(self.norm(h)).float()


def build_model() -> nn.Module:
    return Transformer()


def tokens(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (count, LENGTH), generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (tokens(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def train_data() -> TensorDataset:
    return TensorDataset(tokens(64), tokens(64))
