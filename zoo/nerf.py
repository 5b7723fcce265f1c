"""A NeRF: an MLP with a skip of its input, density and colour from two heads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

WIDTH, BANDS = 48, 6


class NeRF(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bands", 2.0 ** torch.arange(BANDS))
        place = 3 + 3 * 2 * BANDS
        self.layers = nn.ModuleList(
            nn.Linear(place if i == 0 else WIDTH + place if i == 4 else WIDTH, WIDTH)
            for i in range(8)
        )
        self.density = nn.Linear(WIDTH, 1)
        self.colour = nn.Sequential(nn.Linear(WIDTH + place, 24), nn.ReLU(), nn.Linear(24, 3))

    def encoded(self, x: Tensor) -> Tensor:
        angles = (x[..., None] * self.bands).flatten(-2)
        return torch.cat([x, angles.sin(), angles.cos()], dim=-1)

    def forward(self, rays: Tensor) -> Tensor:
        points, directions = self.encoded(rays[..., :3]), self.encoded(rays[..., 3:])
        hidden = points
        for i, layer in enumerate(self.layers):
            if i == 4:
                hidden = torch.cat([hidden, points], dim=-1)
            hidden = F.relu(layer(hidden))
        density = F.softplus(self.density(hidden))
        colour = torch.sigmoid(self.colour(torch.cat([hidden, directions], dim=-1)))
        opacity = 1 - torch.exp(-density)
        passed = torch.cumprod(1 - opacity + 1e-6, dim=1)
        return (colour * opacity * passed).sum(dim=1)


def build_model() -> nn.Module:
    return NeRF()


def rays(count: int) -> Tensor:
    """Rays of 16 points each: a place and a direction."""
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 16, 6, generator=generator)


def example_inputs() -> Tensor:
    return rays(4)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target)


def train_data() -> TensorDataset:
    return TensorDataset(rays(64), torch.rand(64, 3, generator=torch.Generator().manual_seed(1)))
