"""How the charlm example turns text files into windows of characters."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import Tensor

Load = Callable[[str], ModuleType]
COUNTING = "".join(f"{i:06d}\n" for i in range(4_000))  # Every window of it is unique.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DNIC_TEXT", str(tmp_path))
    monkeypatch.delenv("DNIC_WINDOWS", raising=False)
    return tmp_path


def spelled(codes: Tensor) -> str:
    return "".join(map(chr, codes.tolist()))


def starts(pairs: torch.utils.data.TensorDataset) -> list[int]:
    return [COUNTING.index(spelled(inputs)) for inputs, _ in pairs]


def test_targets_are_the_next_characters(example: Load, folder: Path) -> None:
    (folder / "a.txt").write_text(COUNTING)
    inputs, targets = example("charlm").train_data()[0]
    assert inputs.shape == targets.shape == (64,)
    assert inputs.dtype == targets.dtype == torch.int64
    start = COUNTING.index(spelled(inputs))
    assert spelled(targets) == COUNTING[start + 1 : start + 65]


def test_no_character_is_in_two_windows(example: Load, folder: Path) -> None:
    (folder / "a.txt").write_text(COUNTING)
    module = example("charlm")
    train, test = starts(module.train_data()), starts(module.test_data())
    assert (len(train), len(test)) == (387, 43)
    in_order = sorted(train + test)
    assert in_order == [65 * i for i in range(430)]


def test_the_number_of_training_windows_can_be_set(
    example: Load, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "a.txt").write_text(COUNTING)
    module = example("charlm")
    whole = module.train_data().tensors[0]
    monkeypatch.setenv("DNIC_WINDOWS", "100")
    module = example("charlm")
    assert torch.equal(module.train_data().tensors[0], whole[:100])
    assert len(module.test_data()) == 43


def test_files_are_taken_in_order_with_subfolders_and_nothing_else(
    example: Load, folder: Path
) -> None:
    (folder / "test").mkdir()
    (folder / "test" / "c.py").write_text("c" * 10_000)
    (folder / "b.txt").write_text("b" * 10)
    (folder / "a.py").write_text("a" * 10)
    (folder / "a.bin").write_bytes(b"x" * 10)
    assert spelled(example("charlm")._codes()) == "a" * 10 + "b" * 10 + "c" * 10_000


def test_characters_beyond_ascii_become_question_marks(example: Load, folder: Path) -> None:
    (folder / "a.txt").write_bytes("na\u00efve \u4f60\n".encode() + b"\xff" + b"." * 10_000)
    assert spelled(example("charlm")._codes()[:9]) == "na?ve ?\n?"


def test_too_little_text_is_an_error_that_says_what_to_do(example: Load, folder: Path) -> None:
    (folder / "a.txt").write_text("short")
    with pytest.raises(FileNotFoundError, match=r"^5 characters .* DNIC_TEXT"):
        example("charlm").train_data()


def test_the_default_is_the_standard_library_without_its_tests(
    example: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DNIC_TEXT", raising=False)
    text = spelled(example("charlm")._codes())
    assert len(text) > 5_000_000
    assert "class JSONDecoder" in text
    assert "class TestCase(object)" in text
    assert "import pytest" not in text
