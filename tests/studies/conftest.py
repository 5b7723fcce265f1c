"""Tiny images and text where the study's models look for theirs, and results made up by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from studies.learning.runs import Run

VERSIONS = {"dnic": "0.1.0", "torch": "2.13.0", "python": "3.11.7", "cores": 2}
# What runs set of the environment, so that it does not reach other tests.
NAMES = ("DNIC_DATA", "DNIC_LAYERS", "DNIC_WIDTH", "DNIC_EPOCH_STEPS", "DNIC_HOLD_OUT")
NAMES += ("DNIC_SAMPLES", "DNIC_WINDOWS")


def small(**rest: Any) -> Run:
    """A run that takes a moment."""
    given: dict[str, Any] = {"part": "sources", "data": "fashion", "model": "connected"}
    given |= {"layers": 3, "stages": 2, "source": "cdni", "window": 1, "epochs": 2, "lr": 0.003}
    return Run(**(given | {"seed": 0, "width": 32, "samples": 1024, "warmup_steps": 0} | rest))


def result(run: Run, *qualities: float | None, **rest: Any) -> dict[str, Any]:
    """A result with a quality for each epoch, ten seconds each."""
    curve = [
        {"epoch": n, "step": n * run.steps_per_epoch, "seconds": 10.0 * n, "quality": quality}
        for n, quality in enumerate(qualities, 1)
    ]
    told = {"key": run.key, "run": run.to_json(), "date": "2026-11-26", "seconds": 36.0}
    return told | {"command": "command", "versions": VERSIONS, "curve": curve} | rest


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of IDX files: 12,000 images and 100 more, a bar where the class is."""
    folder = tmp_path / "images"
    folder.mkdir()
    random = np.random.default_rng(0)
    for split, count in (("train", 12_000), ("t10k", 100)):
        labels = random.integers(0, 10, count, dtype=np.uint8)
        pictures = random.integers(0, 200, (count, 28, 28), dtype=np.uint8)
        for picture, label in zip(pictures, labels, strict=True):
            picture[label * 2 : label * 2 + 2] += 50
        _idx(folder / f"{split}-images-idx3-ubyte", pictures)
        _idx(folder / f"{split}-labels-idx1-ubyte", labels)
    (folder / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 8000)
    for name in NAMES:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setenv("DNIC_IMAGES", str(folder))
    monkeypatch.setenv("DNIC_TEXT", str(folder))
    return folder


def _idx(path: Path, array: np.ndarray) -> None:
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    path.write_bytes(b"\x00\x00\x08" + bytes([array.ndim]) + sizes + array.tobytes())


@pytest.fixture
def cache(tmp_path: Path) -> Callable[[str], Path]:
    """`cache("a")`: a folder for what is compiled."""
    return lambda name: tmp_path / name
