"""A diffusion U-Net: noise is drawn in forward, time steps are embedded in every block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset

SIZE, WIDTH, STEPS = 16, 16, 100


class Block(nn.Module):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(4, inside), nn.GroupNorm(4, outside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.conv2 = nn.Conv2d(outside, outside, 3, padding=1)
        self.time = nn.Linear(WIDTH, outside)
        self.short = nn.Conv2d(inside, outside, 1) if inside != outside else nn.Identity()

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        hidden = self.conv1(F.silu(self.norm1(x)))
        hidden = hidden + self.time(F.silu(time))[:, :, None, None]
        return self.conv2(F.dropout(F.silu(self.norm2(hidden)), 0.1, self.training)) + self.short(x)


class DiffusionUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.SiLU(), nn.Linear(WIDTH, WIDTH))
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down = nn.ModuleList([Block(8, 8), Block(8, 16), Block(16, 16)])
        self.middle = Block(16, 16)
        self.up = nn.ModuleList([Block(32, 16), Block(32, 8), Block(16, 8)])
        self.out = nn.Conv2d(8, 3, 3, padding=1)

    def forward(self, noisy: Tensor, step: Tensor) -> Tensor:
        powers = torch.arange(WIDTH // 2, device=step.device) / (WIDTH // 2)
        angles = step[:, None].float() * torch.exp(-powers * 9.2)
        time = self.time(torch.cat([angles.sin(), angles.cos()], dim=1))
        x = self.stem(noisy)
        skips = []
        for block in self.down:
            x = block(x, time)
            skips.append(x)
            x = F.avg_pool2d(x, 2)
        x = self.middle(x, time)
        for block in self.up:
            x = F.interpolate(x, scale_factor=2)
            x = block(torch.cat([x, skips.pop()], dim=1), time)
        return self.out(x)


def build_model() -> nn.Module:
    return DiffusionUNet()


def noisy(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Noisy images, how noisy they are, and the noise."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, 3, SIZE, SIZE, generator=generator)
    step = torch.arange(count) * 7 % STEPS
    share = (step / STEPS)[:, None, None, None]
    return share * noise + (1 - share) * noise.flip(3).tanh(), step, noise


def example_inputs() -> tuple[Tensor, ...]:
    return noisy(4)[:2]


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.mse_loss(output, target)


def train_data() -> StackDataset:
    images, step, noise = noisy(64)
    return StackDataset(StackDataset(images, step), noise)
