"""VQ-VAE: a codebook kept as moving averages in buffers, counted in forward."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

SIZE, CHANNELS, CODES = 16, 12, 20


class Quantizer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randn(CODES, CHANNELS))
        self.register_buffer("sums", torch.zeros(CODES, CHANNELS))
        self.register_buffer("counts", torch.ones(CODES))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        flat = x.movedim(1, -1).flatten(0, -2)
        nearest = torch.cdist(flat, self.codes).argmin(dim=1)
        quantized = self.codes[nearest]
        if self.training:
            chosen = F.one_hot(nearest, CODES).to(flat)
            self.steps += 1
            self.counts.mul_(0.9).add_(chosen.sum(0), alpha=0.1)
            self.sums.mul_(0.9).add_(chosen.detach().T @ flat.detach(), alpha=0.1)
        commitment = F.mse_loss(flat, quantized)
        through = flat + (quantized - flat).detach()
        return through.view(*x.movedim(1, -1).shape).movedim(-1, 1), commitment


class VQVAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, CHANNELS, 4, 2, 1), nn.ReLU(), nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1)
        )
        self.quantizer = Quantizer()
        self.decoder = nn.Sequential(
            nn.Conv2d(CHANNELS, CHANNELS, 3, 1, 1),
            nn.ReLU(),
            nn.ConvTranspose2d(CHANNELS, 3, 4, 2, 1),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        quantized, commitment = self.quantizer(self.encoder(image))
        return self.decoder(quantized), commitment


def build_model() -> nn.Module:
    return VQVAE()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 3, SIZE, SIZE, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: tuple[Tensor, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
    restored, commitment = output
    return F.mse_loss(restored, target), 0.25 * commitment


def train_data() -> TensorDataset:
    return TensorDataset(images(64), images(64))
