"""Linear attention: random features, sums over the past by cumsum and einsum."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

VOCABULARY, LENGTH, WIDTH, HEADS = 97, 16, 32, 4


class LinearAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.register_buffer("features", torch.randn(WIDTH // HEADS, 12))

    def positive(self, x: Tensor) -> Tensor:
        projected = x @ self.features
        return torch.exp(projected - x.pow(2).sum(-1, keepdim=True) / 2) + 1e-3

    def forward(self, x: Tensor) -> Tensor:
        batch, length, _ = x.shape
        q, k, v = self.qkv(x).view(batch, length, 3, HEADS, -1).unbind(dim=2)
        q, k = self.positive(q / HEADS), self.positive(k / HEADS)
        memory = torch.einsum("blhf,blhd->blhfd", k, v).cumsum(dim=1)
        scale = torch.einsum("blhf,blhf->blh", q, k.cumsum(dim=1))
        y = torch.einsum("blhf,blhfd->blhd", q, memory) / scale[..., None]
        return self.out(y.reshape(batch, length, WIDTH))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention = LinearAttention()
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 64), nn.GELU(), nn.Linear(64, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class Performer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.position = nn.Embedding(LENGTH, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(8))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tokens: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.embedding(tokens) + self.position(positions)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def build_model() -> nn.Module:
    return Performer()


def tokens(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(VOCABULARY, (count, LENGTH), generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (tokens(4),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def train_data() -> TensorDataset:
    return TensorDataset(tokens(64), tokens(64))
