"""One step of the real optimizer over tensors of some shapes, timed; each set of shapes once."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnic.cost.clock import Clock, repeated, typical
from dnic.cost.kept import KeptTimes
from dnic.cost.machine import available_bytes
from dnic.cost.whole import make_optimizer
from dnic.runtime.optimizer import clear_gradients

_BUDGET_US = 8_000.0
_COPIES = 6
_MOST_ELEMENTS = 1 << 23


def update_times(
    owned: Sequence[Sequence[Tensor]],
    optimizer: str,
    options: Mapping[str, Any] | None,
    known: KeptTimes,
    clock: Clock,
) -> tuple[float, ...] | None:
    """Microseconds of step and `zero_grad` for each list of parameters; 0 for an empty one.

    The parameters are only looked at: others of their shapes are stepped.

    Args:
        owned: parameters that belong together, for each operation.
        optimizer: name of a `torch.optim` class.
        options: its keyword arguments.
        known: times from earlier runs; new ones are put there.
        clock: of the device.

    Returns:
        The times; None where the optimizer does not run on tensors of noise.
    """
    try:
        return tuple(_one(tensors, optimizer, options, known, clock) for tensors in owned)
    except (RuntimeError, TypeError, ValueError, AttributeError):
        return None


def _one(
    tensors: Sequence[Tensor],
    optimizer: str,
    options: Mapping[str, Any] | None,
    known: KeptTimes,
    clock: Clock,
) -> float:
    if not tensors:
        return 0.0
    facts = [optimizer, repr(sorted((options or {}).items()))]
    facts += [f"{tuple(t.shape)}{t.dtype}" for t in tensors]
    key = "update-" + hashlib.sha256("|".join(facts).encode()).hexdigest()[:24]
    if key not in known:
        known.put(key, [_time(tensors, optimizer, options, clock)])
    return known[key][0]


def _time(
    tensors: Sequence[Tensor], optimizer: str, options: Mapping[str, Any] | None, clock: Clock
) -> float:
    shapes = [t.shape if t.numel() <= _MOST_ELEMENTS else (_MOST_ELEMENTS,) for t in tensors]
    own = [
        nn.Parameter(torch.zeros(shape, dtype=t.dtype, device="cpu" if t.is_meta else t.device))
        for shape, t in zip(shapes, tensors, strict=True)
    ]
    # An update walks through memory: what is left out of a huge tensor takes its share of time.
    left_out = sum(t.numel() for t in tensors) / sum(parameter.numel() for parameter in own)
    need, free = _COPIES * sum(p.numel() * p.element_size() for p in own), available_bytes()
    if free is not None and need > free:
        raise RuntimeError("not enough memory to run the optimizer")
    stepper = make_optimizer(optimizer, options, own)
    gradients = [torch.full_like(parameter, 1e-3) for parameter in own]

    def once() -> tuple[float]:
        for parameter, gradient in zip(own, gradients, strict=True):
            parameter.grad = gradient
        start = clock()
        stepper.step()
        clear_gradients(stepper)
        return (clock.between(start, clock()),)

    (times,) = repeated(once, _BUDGET_US)
    return typical(times) * left_out
