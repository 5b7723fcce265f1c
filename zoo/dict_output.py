"""A plain dict in, a plain dict out, and two losses under their names."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset

FEATURES, WIDTH, CLASSES = 20, 48, 4


class MultiTask(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = nn.Linear(FEATURES, WIDTH)
        self.country = nn.Embedding(12, WIDTH)
        self.body = nn.Sequential(
            *(nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU()) for _ in range(6))
        )
        self.heads = nn.ModuleDict(
            {"kind": nn.Linear(WIDTH, CLASSES), "price": nn.Linear(WIDTH, 1)}
        )

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        hidden = self.body(self.numbers(batch["numbers"]) + self.country(batch["country"]))
        return {name: head(hidden) for name, head in self.heads.items()}


def build_model() -> nn.Module:
    return MultiTask()


def batch(count: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(count, FEATURES, generator=generator)
    return {"numbers": numbers, "country": torch.arange(count) % 12}


def example_inputs() -> tuple[dict[str, Tensor]]:
    return (batch(4),)


def loss(output: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
    kind, price = target.unbind(dim=1)
    return {
        "kind": F.cross_entropy(output["kind"], kind.long()),
        "price": F.mse_loss(output["price"].squeeze(1), price),
    }


def train_data() -> StackDataset:
    number = torch.arange(64)
    target = torch.stack([number % CLASSES, number / 64], dim=1)
    return StackDataset(StackDataset(StackDataset(**batch(64))), target)
