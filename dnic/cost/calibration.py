"""The profile of this machine: measured quickly when it is first needed, or fully on request.

Published figures exist for GPUs; a CPU core's depend on vector width, clock and memory channels,
so they are measured. The quick way takes a second or two and one process; the full one, `dnic
calibrate`, half a minute: also what two busy cores cost each other, and the link and the all-reduce
between two processes (`pair`). Either is kept per machine (torch's version, CPU model, cores,
threads), and the full one replaces the quick one. Memory that other programs keep busy is counted
as slow memory.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from dnic.cost.clock import threads_set
from dnic.cost.kernels import Figures, measure
from dnic.cost.machine import cache_file, cpu_model, store
from dnic.cost.pair import PairFailed, PairFigures, measure_pair
from dnic.cost.profile import Crowded, DeviceProfile, Link

_QUICK_BUDGET_US = 150_000.0
_FULL_BUDGET_US = 900_000.0

# Where no second process can measure it: gloo on one machine, 0.4 ms per MB spent on the sending
# thread, 95 us there and back.
_MESSAGE_BYTES_PER_S = 2.5e9
_LOOPBACK = Link(
    name="loopback",
    bandwidth_bytes_per_s=_MESSAGE_BYTES_PER_S,
    latency_us=50.0,
    source="gloo on another machine, not measured here",
)

Progress = Callable[[str], None]


def calibrate(threads: int = 1, refresh: bool = False) -> DeviceProfile:
    """The profile of this machine's CPU with `threads` threads.

    Takes a second or two and then comes from `$XDG_CACHE_HOME/dnic` or `~/.cache/dnic`. torch's
    number of threads is as before afterwards.

    Args:
        threads: threads that one process computes with.
        refresh: measure again even if a result is kept.
    """
    path = cache_file("cpu", threads)
    if not refresh:
        kept = _load(path)
        if kept is not None:
            return kept
    with threads_set(threads):
        figures = measure(threads, _QUICK_BUDGET_US)
    return _kept(path, _profile(figures, None, threads, "quickly"))


def calibrate_machine(
    threads: int = 1, refresh: bool = False, progress: Progress | None = None
) -> DeviceProfile:
    """The profile of this machine, everything measured that it can measure: half a minute.

    Its CPU, or its first CUDA device where torch sees one; only CPUs are kept.

    On a machine with one core, or where two processes cannot talk to each other, the figures of
    pairs stay at their defaults and `source` says so. The result is what `calibrate` returns from
    then on.

    Args:
        threads: threads that one process computes with.
        refresh: measure again even if a full result is kept.
        progress: told what is being measured.
    """
    if torch.cuda.is_available():
        return calibrate_cuda(progress)
    path = cache_file("cpu", threads)
    kept = _load(path)
    if not refresh and kept is not None and kept.reduce_bytes_per_s is not None:
        return kept
    with threads_set(threads):
        figures = measure(threads, _FULL_BUDGET_US, progress=progress)
    pair, note = None, ""
    try:
        pair = measure_pair(threads, progress)
    except PairFailed as error:
        note = f"; pairs of processes not measured: {error}"
    return _kept(path, _profile(figures, pair, threads, "fully", note))


def calibrate_cuda(progress: Progress | None = None) -> DeviceProfile:
    """The profile of the first CUDA device; its link is a guess. Not run by us: we had no GPU.

    Args:
        progress: told what is being measured.
    """
    device = torch.device("cuda", 0)
    facts = torch.cuda.get_device_properties(device)
    figures = measure(1, _FULL_BUDGET_US, device, progress)
    return DeviceProfile(
        name=facts.name.replace(" ", "-"),
        **_of_figures(figures),
        message_bytes_per_s=figures.bytes_per_s / 2,
        memory_bytes=facts.total_memory,
        link=Link(
            name="pcie4",
            bandwidth_bytes_per_s=31.5e9,
            latency_us=10.0,
            source="PCI Express 4.0, 16 lanes; not measured",
        ),
        source=f"measured: {facts.name}, torch {torch.__version__}, {_today()}",
    )


def _profile(
    figures: Figures, pair: PairFigures | None, threads: int, how: str, note: str = ""
) -> DeviceProfile:
    profile = DeviceProfile(
        name="cpu-auto",
        **_of_figures(figures),
        message_bytes_per_s=_MESSAGE_BYTES_PER_S,
        link=_LOOPBACK,
        source=f"measured {how}: {cpu_model()}, {threads} thread(s), torch {torch.__version__}, "
        f"{_today()}{note}",
        cores=os.cpu_count(),
        threads=threads,
    )
    if pair is None:
        return profile
    return profile.model_copy(
        update={
            "message_bytes_per_s": pair.message_bytes_per_s,
            "link": Link(
                name="loopback",
                bandwidth_bytes_per_s=pair.link_bytes_per_s,
                latency_us=pair.link_latency_us,
                source=f"gloo between two processes of this machine, {_today()}",
            ),
            "crowded": Crowded(
                arithmetic=pair.crowded_arithmetic,
                memory=pair.crowded_memory,
                overhead=pair.crowded_overhead,
            ),
            "reduce_bytes_per_s": pair.reduce_bytes_per_s,
            "reduce_latency_us": pair.reduce_latency_us,
            "reduce_tensor_us": pair.reduce_tensor_us,
            "skew": pair.skew,
            "microbatch_us": pair.microbatch_us,
        }
    )


def _of_figures(figures: Figures) -> dict[str, Any]:
    return {field.name: getattr(figures, field.name) for field in fields(figures)}


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _kept(path: Path, profile: DeviceProfile) -> DeviceProfile:
    # The cache is a convenience: a read-only home folder must not stop a compile.
    with contextlib.suppress(OSError):
        store(path, profile.model_dump_json())
    return profile


def _load(path: Path) -> DeviceProfile | None:
    """What is kept, or None when there is nothing or something that this version cannot read."""
    try:
        return DeviceProfile.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
