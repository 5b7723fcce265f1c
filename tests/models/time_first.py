"""Time on the first axis inside, several losses, names that are no identifiers, own functions."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Clipped(torch.autograd.Function):
    """The identity, whose gradient is clipped."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: float) -> Tensor:
        ctx.limit = limit
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient.clamp(-ctx.limit, ctx.limit), None


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 16)
        self.rnn = nn.GRU(16, 16)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0) for _ in range(2)
        )
        self.heads = nn.ModuleDict({"next-token": nn.Linear(16, 5), "0": nn.Linear(16, 1)})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        batch, time = x.shape[:2]
        hidden = self.embed(x).transpose(0, 1)
        hidden, _ = self.rnn(hidden)
        start = torch.zeros(1, batch, 16)
        hidden = torch.cat([start, hidden])
        for layer in self.layers:
            hidden = layer(hidden)
        hidden = Clipped.apply(hidden[1:], 0.01)
        mean = hidden.reshape(time * batch, 16).sum(0) / (2 * batch)
        frame = torch.zeros(batch + 1, 5)[1:]
        return {
            "token": self.heads["next-token"](hidden[-1]) + frame,
            "value": self.heads["0"](hidden.mean(0)).squeeze(-1),
            "mean": mean * (1 / batch),
        }


def build_model() -> nn.Module:
    return TimeFirst()


def example_inputs() -> Tensor:
    return torch.randn(3, 7, 4)


def loss(output: dict[str, Tensor], target: Tensor) -> dict[str, Tensor]:
    return {
        "token": F.cross_entropy(output["token"], target),
        "value": (output["value"] - target).square().mean(),
        "mean": output["mean"].square().sum(),
    }
