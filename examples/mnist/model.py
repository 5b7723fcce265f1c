"""MNIST or Fashion-MNIST with the fully connected network of the paper that began all this.

Six layers of 256 units, each followed by batch normalisation and a rectifier (Jaderberg et al.
2016, arXiv 1608.05343, section 3.1). The images are read from IDX files in a folder: the first of
`$DNIC_MNIST`, `./data/mnist` and `/usr/share/datasets/fashion-mnist` (where Debian puts them).
"""

from __future__ import annotations

import gzip
import os
from itertools import pairwise
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

BATCH_SIZE = 256
CLASSES = 10
WIDTH = 256
LAYERS = 6
DEFAULT_FOLDERS = (Path("data/mnist"), Path("/usr/share/datasets/fashion-mnist"))


class Layer(nn.Module):
    """`relu(norm(linear(x)))`, `[B, in_features]` to `[B, out_features]`."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(in_features, out_features, bias=False)
        self.norm = nn.BatchNorm1d(out_features)

    def forward(self, x: Tensor) -> Tensor:
        """The norm has the bias."""
        return F.relu(self.norm(self.linear(x)))


class FullyConnected(nn.Module):
    """Images `[B, 1, 28, 28]` in 0 to 1, to logits `[B, 10]`."""

    def __init__(self) -> None:
        super().__init__()
        widths = [28 * 28] + [WIDTH] * LAYERS
        self.layers = nn.Sequential(*(Layer(a, b) for a, b in pairwise(widths)))
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, not probabilities."""
        return self.classifier(self.layers(images.flatten(1)))


def build_model() -> nn.Module:
    """The model; whoever calls seeds torch first."""
    return FullyConnected()


def example_inputs() -> tuple[Tensor, ...]:
    """One batch."""
    return (torch.rand(BATCH_SIZE, 1, 28, 28),)


def loss(output: Tensor, target: Tensor) -> Tensor:
    """Cross entropy, averaged over the batch."""
    return F.cross_entropy(output, target)


def read_idx(path: Path) -> np.ndarray:
    """The array of unsigned bytes in an IDX file, plain or gzipped.

    An IDX file holds two zero bytes, a code for the type, the number of dimensions, every size as
    a big-endian 32-bit integer, and the entries.

    Raises:
        ValueError: it is no IDX file of unsigned bytes, or its length is not what its sizes say.
    """
    data = path.read_bytes()
    if data[:2] == b"\x1f\x8b":
        data = gzip.decompress(data)
    if data[:3] != b"\x00\x00\x08":
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    start = 4 + 4 * int.from_bytes(data[3:4])
    shape = tuple(int(size) for size in np.frombuffer(data[4:start], ">i4"))
    if len(data) - start != prod(shape):
        raise ValueError(f"{path} holds {len(data) - start} bytes, but its sizes say {shape}")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _folder() -> Path:
    """Where the four files are: the folder that the user named, or the first that exists."""
    named = os.environ.get("DNIC_MNIST")
    candidates = (Path(named),) if named else DEFAULT_FOLDERS
    for folder in candidates:
        if any(folder.glob("train-images-idx3-ubyte*")):
            return folder
    raise FileNotFoundError(
        f"no file train-images-idx3-ubyte(.gz) in {' or '.join(map(str, candidates))}. "
        "Install Debian's package dataset-fashion-mnist, or set DNIC_MNIST to a folder with the "
        "four IDX files of MNIST or Fashion-MNIST"
    )


def _pairs(split: str) -> TensorDataset:
    folder = _folder()
    arrays = []
    for name in (f"{split}-images-idx3-ubyte", f"{split}-labels-idx1-ubyte"):
        found = [path for path in (folder / name, folder / f"{name}.gz") if path.is_file()]
        if not found:
            raise FileNotFoundError(f"no file {name}(.gz) in {folder}, beside the others")
        arrays.append(read_idx(found[0]))
    images, labels = arrays
    return TensorDataset(
        torch.from_numpy(images / np.float32(255)).unsqueeze(1),
        torch.from_numpy(labels.astype(np.int64)),
    )


def train_data() -> TensorDataset:
    """60,000 pairs of an image `[1, 28, 28]`, float32 in 0 to 1, and its class, int64."""
    return _pairs("train")


def test_data() -> TensorDataset:
    """10,000 pairs from the files of the test set."""
    return _pairs("t10k")
