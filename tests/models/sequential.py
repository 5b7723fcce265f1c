"""A plain nn.Sequential, whose forward calls its parameter `input` as Python does a function."""

import torch
from torch import Tensor, nn


def build_model() -> nn.Module:
    return nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.Tanh(), nn.Linear(12, 2)
    )


def example_inputs() -> tuple[Tensor, ...]:
    return (torch.randn(7, 6),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().mean()
