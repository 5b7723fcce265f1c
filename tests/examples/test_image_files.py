"""Where the mnist example finds its images, how it reads them, and what it says when it cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

Load = Callable[[str], ModuleType]
Write = Callable[[Path, np.ndarray], None]


@given(
    shape=st.lists(st.integers(0, 5), min_size=1, max_size=4).map(tuple),
    suffix=st.sampled_from(["", ".gz"]),
    seed=st.integers(0, 100),
)
def test_idx_files_come_back_as_written(
    example: Load,
    write_idx: Write,
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, ...],
    suffix: str,
    seed: int,
) -> None:
    array = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    path = tmp_path_factory.mktemp("idx") / f"array{suffix}"
    write_idx(path, array)
    assert np.array_equal(example("mnist").read_idx(path), array)


def test_idx_sizes_are_big_endian(example: Load, tmp_path: Path) -> None:
    path = tmp_path / "labels"
    path.write_bytes(bytes.fromhex("00000801 00000003 070209"))
    assert example("mnist").read_idx(path).tolist() == [7, 2, 9]


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "not an IDX file"),
        ("89504e47 0d0a1a0a", "not an IDX file"),
        ("00000d01 00000001 00000000", "not an IDX file of unsigned bytes"),
        ("000008", "its sizes say"),
        ("00000801 00000003 0702", "holds 2 bytes, but its sizes say \\(3,\\)"),
        ("00000801 00000001 0702", "holds 2 bytes, but its sizes say \\(1,\\)"),
    ],
)
def test_files_that_are_not_idx_are_refused(
    example: Load, tmp_path: Path, content: str, complaint: str
) -> None:
    path = tmp_path / "file"
    path.write_bytes(bytes.fromhex(content))
    with pytest.raises(ValueError, match=complaint):
        example("mnist").read_idx(path)


def write_set(write_idx: Write, folder: Path, suffix: str = "", label: int = 0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", 3), ("t10k", 2)):
        images = np.full((count, 28, 28), 51, dtype=np.uint8)
        write_idx(folder / f"{split}-images-idx3-ubyte{suffix}", images)
        labels = np.full(count, label, dtype=np.uint8)
        write_idx(folder / f"{split}-labels-idx1-ubyte{suffix}", labels)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_images_are_floats_and_classes_integers(
    example: Load,
    write_idx: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    write_set(write_idx, tmp_path, suffix, label=7)
    monkeypatch.setenv("DNIC_MNIST", str(tmp_path))
    train, test = example("mnist").train_data(), example("mnist").test_data()
    assert (len(train), len(test)) == (3, 2)
    image, label = train[0]
    assert torch.equal(image, torch.full((1, 28, 28), 0.2))
    assert (label.dtype, label.item()) == (torch.int64, 7)


def test_the_named_folder_comes_first_then_the_one_here(
    example: Load, write_idx: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(write_idx, tmp_path / "data" / "mnist", label=1)
    write_set(write_idx, tmp_path / "named", label=2)
    module = example("mnist")
    monkeypatch.delenv("DNIC_MNIST", raising=False)
    assert module.train_data()[0][1] == 1
    monkeypatch.setenv("DNIC_MNIST", "named")
    assert module.train_data()[0][1] == 2


def test_a_folder_without_images_is_an_error_that_says_what_to_do(
    example: Load, write_idx: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_set(write_idx, tmp_path / "data" / "mnist")
    monkeypatch.setenv("DNIC_MNIST", "empty")
    with pytest.raises(FileNotFoundError, match=r"in empty\. .*dataset-fashion-mnist"):
        example("mnist").train_data()


def test_no_folder_at_all_is_an_error_that_names_every_place(
    example: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = example("mnist")
    monkeypatch.delenv("DNIC_MNIST", raising=False)
    monkeypatch.setattr(module, "DEFAULT_FOLDERS", (tmp_path / "one", tmp_path / "two"))
    with pytest.raises(FileNotFoundError, match=r"one or .*two\. .*DNIC_MNIST"):
        module.test_data()


def test_a_missing_file_among_the_four_is_named(
    example: Load, write_idx: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_set(write_idx, tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    monkeypatch.setenv("DNIC_MNIST", str(tmp_path))
    assert len(example("mnist").train_data()) == 3
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        example("mnist").test_data()
