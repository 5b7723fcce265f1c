"""Eight encoder layers of width 64 to 384 over 64 positions, a class for each, batch 16."""

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.data import Dataset

from studies.predicted.common import random_data, size

BATCH = 16
POSITIONS = 64
INPUTS = 64
VOCABULARY = 256
WIDTH = (64, 128, 256, 384)[size()]


class Net(nn.Module):
    """Embedding, layers, a linear map to the vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(INPUTS, WIDTH)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                WIDTH, 4, 4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            for _ in range(8)
        )
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, x: Tensor) -> Tensor:
        """Scores of every entry of the vocabulary at every position."""
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.output(self.norm(x))


def build_model() -> nn.Module:
    """The model."""
    return Net()


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.randn(BATCH, POSITIONS, INPUTS),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy of every position."""
    return cross_entropy(output.flatten(0, 1), target.flatten())


def train_data() -> Dataset[tuple[Tensor, ...]]:
    """Random sequences."""
    return random_data(BATCH, POSITIONS, INPUTS, targets=(POSITIONS,), classes=VOCABULARY)
