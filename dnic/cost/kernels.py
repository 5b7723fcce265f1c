"""What one process of this machine does a second: a few operations that stand for their class.

Matrix products, convolutions and attention in the sizes of ordinary layers; a walk through tensors
larger than the cache; the smallest operations there are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from dnic.cost.clock import Clock, repeated
from dnic.cost.profile import Efficiency

_MATRIX = 512
_VECTOR = 8_000_000
_CHAIN = 8
# Input features, output features, rows.
_LINEARS = ((1024, 1024, 256), (256, 1024, 1024), (512, 512, 64))
# Channels, size of the map, batch.
_CONVOLUTIONS = ((64, 32, 16), (128, 16, 16))
# Heads, positions, features of a head, batch.
_ATTENTIONS = ((4, 64, 64, 8), (8, 256, 64, 2))


@dataclass(frozen=True)
class Figures:
    """Of one process: see `DeviceProfile`."""

    flops_per_s: float
    bytes_per_s: float
    overhead_us: float
    efficiency: Efficiency


def measure(
    threads: int,
    budget_us: float,
    device: torch.device | None = None,
    progress: Callable[[str], None] | None = None,
) -> Figures:
    """Measure one device.

    Args:
        threads: of a CPU that are computed with; they must be set already.
        budget_us: for each of about a dozen operations.
        device: CPU by default; CUDA is waited for before each look at the clock.
        progress: told what is being measured.
    """
    device = device or torch.device("cpu")
    clock = Clock(device, threads)

    def seconds(what: str, work: Callable[[], Any], share: float = 1.0) -> float:
        if progress is not None:
            progress(what)
        return fastest_us(work, clock, share * budget_us) / 1e6

    with torch.no_grad():
        flops_per_s = 2 * _MATRIX**3 / seconds("matrix products", matrix_product(device))
        walk, moved = vector_walk(device)
        bytes_per_s = moved / seconds("memory", walk)
    chain, links = tiny_chain(device)
    overhead_s = seconds("overhead of an operation", chain) / links

    def efficiency(what: str, jobs: list[tuple[Callable[[], Any], int]]) -> float:
        with torch.no_grad():
            shares = [
                flops / flops_per_s / max(seconds(what, job, 1 / 3) - overhead_s, 1e-9)
                for job, flops in jobs
            ]
        return float(prod(shares) ** (1 / len(shares)))

    return Figures(
        flops_per_s,
        bytes_per_s,
        overhead_s * 1e6,
        Efficiency(
            matmul=efficiency("linear layers", [_linear(*s, device) for s in _LINEARS]),
            conv=efficiency("convolutions", [_convolution(*s, device) for s in _CONVOLUTIONS]),
            attention=efficiency("attention", [_attention(*s, device) for s in _ATTENTIONS]),
        ),
    )


def fastest_us(work: Callable[[], Any], clock: Clock, budget_us: float) -> float:
    """Microseconds of one run, the fastest.

    Not the median: whatever else the machine does only ever slows a run down. Short runs are taken
    together, until the clock's own cost is small.
    """
    rounds = 1
    while True:
        start = clock()
        for _ in range(rounds):
            work()
        took_us = clock.between(start, clock())
        if took_us > 200 or rounds >= 1000:
            break
        rounds *= 4

    def once() -> tuple[float]:
        start = clock()
        for _ in range(rounds):
            work()
        return (clock.between(start, clock()) / rounds,)

    (times,) = repeated(once, budget_us, most=10_000)
    return max(min(times), 1e-3)


def matrix_product(device: torch.device | None = None) -> Callable[[], Any]:
    """A product of two square matrices that stay in the cache, `_MATRIX` wide."""
    a = torch.ones(_MATRIX, _MATRIX, device=device)
    out = torch.empty_like(a)
    return lambda: torch.mm(a, a, out=out)


def vector_walk(device: torch.device | None = None) -> tuple[Callable[[], Any], int]:
    """An addition larger than the cache, and the bytes that it reads and writes."""
    a = torch.ones(_VECTOR, device=device)
    out = torch.empty_like(a)
    return lambda: torch.add(a, a, out=out), 2 * a.numel() * a.element_size()


def tiny_chain(device: torch.device | None = None) -> tuple[Callable[[], Any], int]:
    """A network of tiny layers, and how many."""
    layers = [layer for _ in range(_CHAIN) for layer in (nn.Linear(8, 8), nn.ReLU())]
    net, x = nn.Sequential(*layers).to(device), torch.ones(8, 8, device=device)
    return lambda: net(x), len(layers)


def _linear(
    inputs: int, outputs: int, rows: int, device: torch.device
) -> tuple[Callable[[], Any], int]:
    x, layer = torch.ones(rows, inputs, device=device), nn.Linear(inputs, outputs, device=device)
    return lambda: layer(x), 2 * rows * inputs * outputs


def _convolution(
    channels: int, size: int, batch: int, device: torch.device
) -> tuple[Callable[[], Any], int]:
    x = torch.ones(batch, channels, size, size, device=device)
    layer = nn.Conv2d(channels, channels, 3, padding=1, bias=False, device=device)
    return lambda: layer(x), 2 * batch * size * size * channels * channels * 9


def _attention(
    heads: int, positions: int, features: int, batch: int, device: torch.device
) -> tuple[Callable[[], Any], int]:
    q = torch.ones(batch, heads, positions, features, device=device)

    def work() -> Any:
        return functional.scaled_dot_product_attention(q, q, q)

    return work, 4 * batch * heads * positions * positions * features
