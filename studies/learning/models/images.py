"""MNIST and Fashion-MNIST for the study's model files, with a part of the training set held out.

Options come from the environment, as the bundles of the study are trained in processes of their
own: `DNIC_DATA` (`mnist`, `fashion`), `DNIC_HOLD_OUT=1` (the last 10,000 training images are the
test set: learning rates are tuned there), `DNIC_SAMPLES` (train on so many at most, test on a
fifth of that).
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import TensorDataset

from examples.mnist.model import read_idx

ROOT = Path(__file__).parents[3]
FOLDERS = {
    "mnist": ROOT / "data" / "mnist",
    "fashion": Path("/usr/share/datasets/fashion-mnist"),
}
# Where each data set comes from, for whoever lacks it.
SOURCES = {
    "mnist": "make mnist",
    "fashion": "Debian's package dataset-fashion-mnist",
}
HELD_OUT = 10_000
CLASSES = 10


def folder() -> Path:
    """Where the four IDX files are; `DNIC_IMAGES` names another folder.

    Raises:
        FileNotFoundError: they are not there.
    """
    name = os.environ.get("DNIC_DATA", "fashion")
    found = Path(os.environ.get("DNIC_IMAGES", FOLDERS[name]))
    if not any(found.glob("train-images-idx3-ubyte*")):
        raise FileNotFoundError(f"no file train-images-idx3-ubyte in {found}: {SOURCES[name]}")
    return found


def images(split: str) -> TensorDataset:
    """Pairs of an image `[1, 28, 28]`, float32 in 0 to 1, and its class, int64.

    Args:
        split: `train` or `test`.
    """
    hold_out = os.environ.get("DNIC_HOLD_OUT") == "1"
    pictures, labels = _read("t10k" if split == "test" and not hold_out else "train")
    if hold_out:
        kept = slice(-HELD_OUT, None) if split == "test" else slice(None, -HELD_OUT)
        pictures, labels = pictures[kept], labels[kept]
    most = int(os.environ.get("DNIC_SAMPLES", len(labels)))
    most = max(1, most // 5) if split == "test" and "DNIC_SAMPLES" in os.environ else most
    return TensorDataset(
        torch.from_numpy(pictures[:most] / np.float32(255)).unsqueeze(1),
        torch.from_numpy(labels[:most].astype(np.int64)),
    )


def _read(stem: str) -> tuple[np.ndarray, np.ndarray]:
    where = folder()
    arrays = []
    for name in (f"{stem}-images-idx3-ubyte", f"{stem}-labels-idx1-ubyte"):
        plain, packed = where / name, where / f"{name}.gz"
        arrays.append(read_idx(plain if plain.is_file() else packed))
    return arrays[0], arrays[1]
