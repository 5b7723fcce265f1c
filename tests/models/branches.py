"""A U-shaped net with skips over several stages, two inputs, and two results."""

import torch
from torch import Tensor, nn


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Linear(12, 24)
        self.down2 = nn.Linear(24, 24)
        self.middle = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 24))
        self.up2 = nn.Linear(48, 24)
        self.up1 = nn.Linear(48, 12)
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, x: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.relu(self.down1(x))
        b = torch.relu(self.down2(a)) * self.scale
        c = self.middle(b)
        up = torch.relu(self.up2(torch.cat([c, b], dim=1)))
        out = self.up1(torch.cat([up, a], dim=-1))
        return out * gate, up.sum(1)


def build_model() -> nn.Module:
    return Branches()


def example_inputs() -> tuple[Tensor, ...]:
    return torch.randn(6, 12), torch.rand(6, 12)


def loss(output: tuple[Tensor, Tensor], target: Tensor) -> Tensor:
    return ((output[0] - target) ** 2).mean() + output[1].mean()
