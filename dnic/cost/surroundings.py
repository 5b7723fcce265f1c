"""What a training step costs beside the model: reading a batch, and the loss.

Neither is in the captured graph; both are counted at its ends, so that whoever adds up the costs of
a stage counts them where they are done.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from dnic.cost.costs import Costs

# Softmax, its logarithm and picking, and the way back: walks through the model's output.
LOSS_WALKS = 3
_REPEATS = 12
_MOST_S = 0.4


def analytic_loss(costs: Costs, output_bytes: int) -> Costs:
    """The costs with a loss at the last operation, computed from the size of the output.

    Args:
        costs: without it.
        output_bytes: of what the model returns, for one batch.
    """
    profile = costs.profile
    walk_us = LOSS_WALKS * profile.operation_us(0, 2 * output_bytes)
    fixed_us = LOSS_WALKS * profile.overhead_us
    return replace(
        costs,
        forward_us=_last(costs.forward_us, walk_us),
        backward_us=_last(costs.backward_us, walk_us),
        forward_fixed_us=_last(costs.forward_fixed_us, fixed_us),
        backward_fixed_us=_last(costs.backward_fixed_us, fixed_us),
    )


def with_loader(costs: Costs, loader_us: float) -> Costs:
    """The costs with reading a batch at the first operation.

    Args:
        costs: without it.
        loader_us: microseconds of one batch.
    """
    first, *rest = costs.forward_us
    return replace(costs, forward_us=(first + loader_us, *rest))


def measure_loader_us(batches: Iterator[Any]) -> float:
    """Microseconds of processor time to read one batch: the median over some.

    Args:
        batches: of an epoch; the first is not counted.
    """
    times: list[float] = []
    begun = time.perf_counter()
    next(batches, None)
    while len(times) < _REPEATS and time.perf_counter() - begun < _MOST_S:
        started = time.thread_time()
        if next(batches, None) is None:
            break
        times.append(time.thread_time() - started)
    return sorted(times)[len(times) // 2] * 1e6 if times else 0.0


def _last(entries: tuple[float, ...], added: float) -> tuple[float, ...]:
    *rest, last = entries
    return (*rest, last + added)
