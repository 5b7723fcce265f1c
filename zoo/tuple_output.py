"""A policy and a value from one body: the model returns a tuple, the loss adds two terms."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset

STATE, ACTIONS, WIDTH = 24, 6, 64


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(F.silu(self.up(self.norm(hidden))))


class ActorCritic(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(STATE, WIDTH)
        self.body = nn.Sequential(*(Residual() for _ in range(8)))
        self.policy = nn.Linear(WIDTH, ACTIONS)
        self.value = nn.Linear(WIDTH, 1)

    def forward(self, state: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.body(self.embed(state))
        return F.log_softmax(self.policy(hidden), dim=-1), self.value(hidden).squeeze(-1)


def build_model() -> nn.Module:
    return ActorCritic()


def states(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(count, STATE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (states(4),)


def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    policy, value = output
    action, reward = target[:, 0].long(), target[:, 1]
    return F.nll_loss(policy, action) + 0.5 * F.mse_loss(value, reward)


def train_data() -> StackDataset:
    number = torch.arange(64)
    target = torch.stack([number % ACTIONS, number % 5 - 2], dim=1).float()
    return StackDataset(states(64), target)
