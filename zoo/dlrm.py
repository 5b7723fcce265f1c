"""A recommender: embedding bags for categories, dot products between all of them."""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset

DENSE, TABLES, ROWS, WIDTH = 8, 4, 50, 16


def mlp(*sizes: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inside, outside in pairwise(sizes):
        layers += [nn.Linear(inside, outside), nn.ReLU()]
    return nn.Sequential(*layers)


class Recommender(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bottom = mlp(DENSE, 64, 32, WIDTH)
        self.bags = nn.ModuleList(nn.EmbeddingBag(ROWS, WIDTH, mode="sum") for _ in range(TABLES))
        pairs = TABLES * (TABLES + 1) // 2
        self.top = nn.Sequential(mlp(pairs + WIDTH, 64, 32), nn.Linear(32, 1))
        rows, columns = torch.tril_indices(TABLES + 1, TABLES + 1, offset=-1)
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("columns", columns, persistent=False)

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        bottom = self.bottom(dense)
        found = [bag(categories[:, i]) for i, bag in enumerate(self.bags)]
        features = torch.stack([bottom, *found], dim=1)
        products = torch.bmm(features, features.transpose(1, 2))
        interactions = products[:, self.rows, self.columns]
        return self.top(torch.cat([bottom, interactions], dim=1)).squeeze(1)


def build_model() -> nn.Module:
    return Recommender()


def clicks(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    dense = torch.randn(count, DENSE, generator=generator)
    return dense, torch.randint(ROWS, (count, TABLES, 3), generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return clicks(4)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(output, target)


def train_data() -> StackDataset:
    return StackDataset(StackDataset(*clicks(64)), torch.arange(64) % 2 * 1.0)
