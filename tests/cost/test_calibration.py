"""Calibration: measured once, kept, and nothing else of torch changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dnic.cost import DeviceProfile, calibrate, load_profile


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dnic"


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_measures_something_plausible_and_keeps_it(cache: Path) -> None:
    profile = calibrate()
    assert torch.get_num_threads() == 2
    assert 1e8 < profile.flops_per_s < 1e13
    assert 1e8 < profile.bytes_per_s < 1e13
    assert 0.1 < profile.overhead_us < 10_000
    (kept,) = cache.iterdir()
    assert DeviceProfile.model_validate_json(kept.read_text()) == profile
    # Two measurements never agree to the last bit: this one was read.
    assert calibrate() == load_profile("auto") == profile


def test_what_is_kept_is_used_until_asked_to_refresh(cache: Path) -> None:
    profile = calibrate()
    (kept,) = cache.iterdir()
    marked = profile.model_copy(update={"flops_per_s": 123.0})
    kept.write_text(marked.model_dump_json())
    assert calibrate() == marked
    assert calibrate(refresh=True).flops_per_s != 123.0
    assert calibrate().flops_per_s != 123.0


@pytest.mark.parametrize("broken", ["{", '{"name": "x", "speed": 1}'])
def test_a_broken_file_is_measured_anew(cache: Path, broken: str) -> None:
    profile = calibrate()
    (kept,) = cache.iterdir()
    kept.write_text(broken)
    assert calibrate().name == profile.name
    assert DeviceProfile.model_validate_json(kept.read_text()).name == profile.name
    assert list(cache.iterdir()) == [kept], "nothing temporary stays"


def test_a_folder_that_cannot_be_made_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert calibrate().flops_per_s > 0


def test_other_numbers_of_threads_are_kept_apart(cache: Path) -> None:
    calibrate(1)
    calibrate(2)
    assert len(list(cache.iterdir())) == 2
