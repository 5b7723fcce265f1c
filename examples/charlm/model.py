"""A small GPT that learns to write Python, character by character.

A causal transformer with pre-normalisation and learned positions. The text is every `*.py` and
`*.txt` file in `$DNIC_TEXT` and below; by default the Python standard library's own source, which
every machine that runs this has. Characters are their ASCII codes; any other one becomes `?`.
"""

from __future__ import annotations

import os
import sysconfig
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

BATCH_SIZE = 32
VOCABULARY = 128
CONTEXT = 64  # T, the number of characters that the model sees
WIDTH = 128  # C
HEADS = 4
LAYERS = 4
TRAIN_WINDOWS = 32_000  # at most; DNIC_WINDOWS sets another number
TEST_WINDOWS = 2_000
MINIMUM_TEXT = 10_000
SKIPPED_FOLDERS = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}


class Attention(nn.Module):
    """Causal self-attention, `[B, T, C]` to `[B, T, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.project = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Each position sees itself and those before it."""
        B, T, C = x.shape
        q, k, v = self.qkv(x).split(C, dim=2)
        q = q.view(B, T, HEADS, C // HEADS).transpose(1, 2)  # [B, heads, T, C / heads]
        k = k.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        v = v.view(B, T, HEADS, C // HEADS).transpose(1, 2)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.project(y.transpose(1, 2).reshape(B, T, C))


class Block(nn.Module):
    """A transformer block, normalised before each half, `[B, T, C]` to `[B, T, C]`."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH)
        self.attention = Attention()
        self.norm2 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Adds what it computes to its input."""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class CharLM(nn.Module):
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
        """Logits, not probabilities."""
        T = characters.size(1)
        x = self.characters(characters) + self.positions(torch.arange(T, device=characters.device))
        return self.output(self.norm(self.blocks(x)))


def build_model() -> nn.Module:
    """The model; whoever calls seeds torch first."""
    return CharLM()


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.randint(VOCABULARY, (BATCH_SIZE, CONTEXT)),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy in nats per character, averaged over batch and positions."""
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


def _text_files(folder: Path, skipped: set[str]) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - skipped)
        yield from (Path(parent, name) for name in sorted(names) if name.endswith((".py", ".txt")))


def _codes() -> Tensor:
    """The whole text as ASCII codes, uint8."""
    named = os.environ.get("DNIC_TEXT")
    folder = Path(named or sysconfig.get_path("stdlib"))
    paths = _text_files(folder, set() if named else SKIPPED_FOLDERS)
    text = "".join(path.read_text("utf-8", errors="replace") for path in paths)
    if len(text) < MINIMUM_TEXT:
        raise FileNotFoundError(
            f"{len(text)} characters in the *.py and *.txt files of {folder} and below, but "
            f"{MINIMUM_TEXT} are needed. Set DNIC_TEXT to a folder with more text"
        )
    return torch.frombuffer(bytearray(text, "ascii", "replace"), dtype=torch.uint8)


@cache
def _split() -> tuple[Tensor, Tensor]:
    """Windows `[N, T + 1]` for training and for the test, in a fixed random order.

    Windows do not overlap, so no character of the test set is trained on. Both sets come from the
    same files: the test asks about the same kind of text, not about a new author.
    """
    codes = _codes()
    count = len(codes) // (CONTEXT + 1)
    windows = codes[: count * (CONTEXT + 1)].view(count, CONTEXT + 1)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    tests = min(TEST_WINDOWS, count // 10)
    trains = int(os.environ.get("DNIC_WINDOWS", TRAIN_WINDOWS))
    return windows[order[tests : tests + trains]], windows[order[:tests]]


def _pairs(windows: Tensor) -> TensorDataset:
    windows = windows.long()
    return TensorDataset(windows[:, :-1], windows[:, 1:])


def train_data() -> TensorDataset:
    """Pairs of characters `[64]` and the characters that follow each of them `[64]`, int64."""
    return _pairs(_split()[0])


def test_data() -> TensorDataset:
    """The same, 2,000 pairs (a tenth of a small text), none of them among `train_data()`."""
    return _pairs(_split()[1])
