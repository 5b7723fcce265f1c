"""Branches on the value of a tensor in its own forward: cannot be captured."""

import torch
from torch import Tensor, nn


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))

    def forward(self, x: Tensor) -> Tensor:
        if x.mean() > 0:
            x = -x
        return self.layers(x)


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randn(4, 8),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()
