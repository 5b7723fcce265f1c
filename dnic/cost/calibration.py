"""Measuring this machine's CPU, once, in about a second.

Published figures exist for GPUs; a CPU core's depend on vector width, clock and memory channels,
so they are measured: a matrix product, a large addition, a small network. The result is kept per
machine (torch's version, CPU model, cores, threads). Memory that other programs keep busy is
counted as slow memory. CUDA devices are not measured here.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import nn
from torch.utils.benchmark import Timer

from dnic.cost.machine import cache_file, cpu_model, store
from dnic.cost.profile import DeviceProfile, Link

_MATRIX = 512
_VECTOR = 8_000_000
_CHAIN = 8

# gloo on one machine: 0.4 ms per MB spent on the sending thread, 95 us there and back. Measuring
# it would need a second process; it differs little between machines.
_MESSAGE_BYTES_PER_S = 2.5e9
_LOOPBACK = Link(name="loopback", bandwidth_bytes_per_s=_MESSAGE_BYTES_PER_S, latency_us=50.0)


def calibrate(threads: int = 1, refresh: bool = False) -> DeviceProfile:
    """The profile of this machine's CPU with `threads` threads.

    Takes about a second and then comes from `$XDG_CACHE_HOME/dnic` or `~/.cache/dnic`. torch's
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
    profile = _measure(threads)
    # The cache is a convenience: a read-only home folder must not stop a compile.
    with contextlib.suppress(OSError):
        store(path, profile.model_dump_json())
    return profile


def _measure(threads: int) -> DeviceProfile:
    matrix = torch.ones(_MATRIX, _MATRIX)
    product_s = _seconds("torch.mm(a, a, out=b)", threads, a=matrix, b=torch.empty_like(matrix))
    vector = torch.ones(_VECTOR)
    add_s = _seconds("torch.add(a, a, out=b)", threads, a=vector, b=torch.empty_like(vector))
    layers = [layer for _ in range(_CHAIN) for layer in (nn.Linear(8, 8), nn.ReLU())]
    chain_s = _seconds("net(x)", threads, net=nn.Sequential(*layers), x=torch.ones(8, 8))
    return DeviceProfile(
        name="cpu-auto",
        flops_per_s=2 * _MATRIX**3 / product_s,
        bytes_per_s=2 * vector.numel() * vector.element_size() / add_s,
        overhead_us=chain_s / len(layers) * 1e6,
        message_bytes_per_s=_MESSAGE_BYTES_PER_S,
        link=_LOOPBACK,
        source=f"measured: {cpu_model()}, {threads} thread(s), torch {torch.__version__}",
    )


def _seconds(statement: str, threads: int, **names: object) -> float:
    """Seconds of one run, the fastest block of 0.3 s; sets and restores torch's threads.

    The fastest, not the median: whatever else the machine does only ever slows a block down. For
    one thread it is CPU time, which does not count waiting for a core.
    """
    clock = time.thread_time if threads == 1 else time.perf_counter
    timer = Timer(statement, globals=names, num_threads=threads, timer=clock)
    return float(min(timer.blocked_autorange(min_run_time=0.3).times))


def _load(path: Path) -> DeviceProfile | None:
    """What is kept, or None when there is nothing or something that this version cannot read."""
    try:
        return DeviceProfile.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError):
        return None
