"""A causal character transformer, `examples/charlm` with a depth that can be chosen.

`DNIC_LAYERS` blocks of width 128. The text is the Python standard library's source. An epoch is
`DNIC_EPOCH_STEPS` batches of windows drawn at random from all of the text, so that evaluations can
be close together and no window is seen often. `DNIC_HOLD_OUT=1` tests on other windows, where
learning rates are tuned; `DNIC_SAMPLES` tests on so many at most. Batch 16.
"""

from __future__ import annotations

import os
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Dataset, TensorDataset

from examples.charlm import model as charlm
from examples.charlm.model import CONTEXT, VOCABULARY, WIDTH, Block

BATCH = 16
LAYERS = int(os.environ.get("DNIC_LAYERS", "4"))
EPOCH_STEPS = int(os.environ.get("DNIC_EPOCH_STEPS", "375"))
HELD_OUT = 2_000
ALL = 10_000_000


class Characters(nn.Module):
    """Characters `[B, T]`, int64, to logits of the next ones, `[B, T, 128]`."""

    def __init__(self) -> None:
        super().__init__()
        self.characters = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.output = nn.Linear(WIDTH, VOCABULARY, bias=False)
        nn.init.normal_(self.characters.weight, std=0.02)
        nn.init.normal_(self.positions.weight, std=0.02)

    def forward(self, characters: Tensor) -> Tensor:
        """Logits."""
        T = characters.size(1)  # noqa: N806  # as in examples/charlm
        x = self.characters(characters) + self.positions(torch.arange(T, device=characters.device))
        return self.output(self.norm(self.blocks(x)))


class Drawn(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of a window and what follows each of its characters, drawn anew at every reading.

    From torch's random numbers, which belong to the stage that reads: the same in every run with
    the same seed.
    """

    def __init__(self, windows: TensorDataset) -> None:
        self._windows = windows

    def __len__(self) -> int:
        return EPOCH_STEPS * BATCH

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        inputs, targets = self._windows.tensors
        drawn = int(torch.randint(len(inputs), ()))
        return inputs[drawn], targets[drawn]


@cache
def _windows() -> TensorDataset:
    """All windows that the example does not test on."""
    os.environ["DNIC_WINDOWS"] = str(ALL)
    return charlm.train_data()


def build_model() -> nn.Module:
    """The model."""
    return Characters()


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.randint(VOCABULARY, (BATCH, CONTEXT)),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy in nats per character."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def train_data() -> Drawn:
    """Windows of 64 characters and what follows each of them; the last 2,000 are held out."""
    return Drawn(TensorDataset(*(part[:-HELD_OUT] for part in _windows().tensors)))


def test_data() -> TensorDataset:
    """Windows that are never trained on."""
    tested = charlm.test_data().tensors
    if os.environ.get("DNIC_HOLD_OUT") == "1":
        tested = tuple(part[-HELD_OUT:] for part in _windows().tensors)
    most = int(os.environ.get("DNIC_SAMPLES", len(tested[0])))
    return TensorDataset(*(part[:most] for part in tested))
