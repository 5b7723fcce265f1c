"""Calibration: measured once, kept, and nothing else of torch changed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from dnic.cost import Crowded, DeviceProfile, Efficiency, calibrate, calibration, load_profile
from dnic.cost.calibration import calibrate_machine
from dnic.cost.child import cores
from dnic.cost.kernels import Figures
from dnic.cost.pair import PairFailed, PairFigures, measure_pair


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
    assert min(profile.efficiency.model_dump().values()) > 0
    assert (profile.threads, profile.reduce_bytes_per_s) == (1, None)
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


PAIR = PairFigures(1.1, 1.2, 1.3, 2e9, 40.0, 3e9, 7e8, 90.0, 4.0, 0.05, 250.0)
FIGURES = Figures(1e11, 2e10, 5.0, Efficiency(matmul=0.9, conv=0.8, attention=0.7))


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is measured, with made-up figures."""
    done: list[str] = []

    def alone(threads: int, budget_us: float, progress: object = None) -> Figures:
        done.append(f"alone with {threads}")
        return FIGURES

    def pair(threads: int, progress: object = None) -> PairFigures:
        done.append(f"pair with {threads}")
        return PAIR

    monkeypatch.setattr(calibration, "measure", alone)
    monkeypatch.setattr(calibration, "measure_pair", pair)
    return done


@pytest.mark.usefixtures("cache")
def test_a_full_calibration_replaces_a_quick_one(measurements: list[str]) -> None:
    assert calibrate(2).link.latency_us == 50
    full = calibrate_machine(2)
    assert measurements == ["alone with 2", "alone with 2", "pair with 2"]
    assert full.crowded == Crowded(arithmetic=1.1, memory=1.2, overhead=1.3)
    assert (full.link.latency_us, full.link.bandwidth_bytes_per_s) == (40, 2e9)
    assert (full.message_bytes_per_s, full.microbatch_us) == (3e9, 250)
    assert (full.reduce_bytes_per_s, full.reduce_latency_us) == (7e8, 90)
    assert (full.reduce_tensor_us, full.skew) == (4, 0.05)
    assert (full.efficiency, full.threads) == (FIGURES.efficiency, 2)
    assert calibrate(2) == calibrate_machine(2) == full
    assert len(measurements) == 3
    calibrate_machine(2, refresh=True)
    assert len(measurements) == 5


@pytest.mark.usefixtures("cache", "measurements")
def test_without_a_second_core_the_source_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(threads: int, progress: object = None) -> PairFigures:
        raise PairFailed("1 core(s) for two processes of 1 thread(s)")

    monkeypatch.setattr(calibration, "measure_pair", fail)
    profile = calibrate_machine()
    assert profile.crowded == Crowded()
    assert profile.reduce_bytes_per_s is None
    assert profile.source.endswith("not measured: 1 core(s) for two processes of 1 thread(s)")


def test_a_pair_needs_a_core_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnic.cost.pair.cores", lambda: [0])
    with pytest.raises(PairFailed, match=r"1 core\(s\) for two processes of 1 thread"):
        measure_pair(1)


def test_a_process_that_fails_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnic.cost.pair.cores", lambda: [0, 1])
    monkeypatch.setattr("dnic.cost.pair.sys.executable", "/bin/false")
    with pytest.raises(PairFailed, match="no answer"):
        measure_pair(1)


@pytest.mark.processes
@pytest.mark.skipif(len(cores()) < 2, reason="needs two cores")
def test_a_real_pair() -> None:
    said: list[str] = []
    found = measure_pair(1, said.append)
    assert said[-1] == "pipeline schedule"
    assert min(found.crowded_arithmetic, found.crowded_memory, found.crowded_overhead) >= 1
    assert min(found.link_bytes_per_s, found.message_bytes_per_s, found.reduce_bytes_per_s) > 1e6
    assert min(found.link_latency_us, found.microbatch_us) > 0
    assert found.reduce_latency_us >= 0  # what is left at no bytes at all, on a busy machine 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu() -> None:
    profile = calibration.calibrate_cuda()
    assert profile.flops_per_s > 0
    assert profile.memory_bytes
