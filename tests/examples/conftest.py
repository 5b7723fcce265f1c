"""Model files loaded the way that a bundle loads its copy: alone, by path."""

from __future__ import annotations

import gzip
import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest


@pytest.fixture(scope="session")
def example(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModuleType]:
    """`example("digits")`: that example's model file, executed from a copy in an empty folder."""

    def load(name: str) -> ModuleType:
        copy = tmp_path_factory.mktemp(name) / "model.py"
        shutil.copy(project / "examples" / name / "model.py", copy)
        spec = importlib.util.spec_from_file_location(f"{name}_model", copy)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return load


@pytest.fixture(scope="session")
def write_idx() -> Callable[[Path, np.ndarray], None]:
    """`write_idx(path, array)`: unsigned bytes as an IDX file, gzipped where the name says so."""

    def write(path: Path, array: np.ndarray) -> None:
        sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
        data = b"\x00\x00\x08" + bytes([array.ndim]) + sizes + array.tobytes()
        path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)

    return write


@pytest.fixture
def small_data(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write_idx: Callable[[Path, np.ndarray], None],
) -> None:
    """A few hundred images and a page of text, where the examples look for theirs."""
    random = np.random.default_rng(0)
    for split, count in (("train", 512), ("t10k", 64)):
        labels = random.integers(0, 10, count, dtype=np.uint8)
        images = random.integers(0, 50, (count, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[label * 2 : label * 2 + 2] += 200
        write_idx(tmp_path / f"{split}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{split}-labels-idx1-ubyte", labels)
    (tmp_path / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 800)
    monkeypatch.setenv("DNIC_MNIST", str(tmp_path))
    monkeypatch.setenv("DNIC_TEXT", str(tmp_path))
