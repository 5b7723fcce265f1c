"""A variational autoencoder: noise drawn in forward, a reconstruction and a KL term."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

SIZE, LATENT, WIDTH = 784, 8, 64


class VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(SIZE, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
        )
        self.mean, self.log_variance = nn.Linear(WIDTH, LATENT), nn.Linear(WIDTH, LATENT)
        self.decoder = nn.Sequential(
            nn.Linear(LATENT, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU()
        )
        self.pixels = nn.Linear(WIDTH, SIZE)

    def sample(self, mean: Tensor, log_variance: Tensor) -> Tensor:
        if not self.training:
            return mean
        return mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(image.flatten(1))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        latent = self.sample(mean, log_variance)
        return self.pixels(self.decoder(latent)).view_as(image), mean, log_variance


def build_model() -> nn.Module:
    return VAE()


def images(count: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, 1, 28, 28, generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return (images(4),)


def loss(output: tuple[Tensor, Tensor, Tensor], target: Tensor) -> Tensor:
    pixels, mean, log_variance = output
    restored = F.binary_cross_entropy_with_logits(pixels, target)
    divergence = -0.5 * (1 + log_variance - mean.pow(2) - log_variance.exp()).mean()
    return restored + 0.01 * divergence


def train_data() -> TensorDataset:
    return TensorDataset(images(64), images(64))
