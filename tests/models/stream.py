"""A residual stream that every block adds to in place."""

import torch
from torch import Tensor, nn


class Stream(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.GELU()) for _ in range(4))
        self.last = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.embed(x)
        for block in self.blocks:
            hidden += block(torch.relu(hidden))
        table = torch.zeros(x.shape[0], 3)
        table[:, 1:] = x[:, :2]
        return self.last(hidden).mul_(0.5) + table


def build_model() -> nn.Module:
    return Stream()


def example_inputs() -> Tensor:
    return torch.randn(5, 8)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()
