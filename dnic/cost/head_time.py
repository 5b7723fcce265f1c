"""What the real heads take on this machine, measured once for each shape and kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnic.cost.child import ChildFailed, can_fork, cores, in_child
from dnic.cost.clock import Clock, repeated, threads_set, typical
from dnic.cost.head import head_cost, samples_of
from dnic.cost.head_parts import HeadCost, Source, TargetSize
from dnic.cost.kept import KeptTimes
from dnic.cost.profile import DeviceProfile
from dnic.errors import DnicError
from dnic.graph.graph import Value

_BUDGET_US = 150_000.0
# What runs between two uses of a head: enough to take the caches and the branch predictor from it.
_BETWEEN_WIDTH, _BETWEEN_LAYERS = 256, 4


def time_head(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    target: TargetSize | None = None,
    source: Source = "synthetic",
    threads: int = 1,
    kept: KeptTimes | None = None,
    one_in: int = 1,
) -> HeadCost:
    """Like `head_cost`, but synthetic heads are built and run on this machine's CPU.

    A batch of noise is predicted and learnt from a number of times, with other layers' work between
    as in training (without it a small head takes half as long), once for each shape and kind of
    head; the result is kept on disk. Other sources, which have no such head, and heads
    that cannot be built are computed. torch's random state is left as it was.

    Args:
        values: the differentiable tensors that cross, the batch on one axis.
        batch_size: samples in a batch.
        hidden_layers: 0 to 3.
        width: of the hidden layers; None is as wide as the tensor's features.
        profile: the device, for what is computed.
        target: what the heads see of the targets; None without context.
        source: where the gradient comes from.
        threads: that one process computes with.
        kept: times that are known; None for this machine's file.
        one_in: it learns from one in so many samples of a batch.
    """
    computed = head_cost(values, batch_size, hidden_layers, width, profile, target, source, one_in)
    if source != "synthetic" or batch_size < 1:
        return computed
    known = kept or KeptTimes(threads)
    forward_us = train_us = 0.0
    for value in values:
        rows, sample = samples_of(value, batch_size)
        key = f"head-between4-{rows}-{sample}-{value.dtype}-{hidden_layers}-{width}-{target}"
        key += f"-{one_in}"
        if key not in known:
            try:
                head = rows, sample, value.dtype, hidden_layers, width, target, one_in
                times = _timed(*head, threads)
            except (DnicError, RuntimeError, ValueError, TypeError, ChildFailed):
                return computed
            known.put(key, times)
        forward_us += known[key][0]
        train_us += known[key][1]
    known.save()
    return HeadCost(computed.parameters, forward_us, train_us)


def _timed(*head: Any) -> list[float]:
    """Like `_time`: in a child with the memory and the core of a training process, if possible."""
    threads: int = head[-1]
    if can_fork() and threads == 1:
        found: list[float] = in_child(lambda: _quiet(head), cores()[0])
        return found
    return _quiet(head)


def _quiet(head: Sequence[Any]) -> list[float]:
    with threads_set(head[-1]), torch.random.fork_rng(devices=[]):
        return _time(*head)


def _time(
    rows: int,
    sample: tuple[int, ...],
    dtype_name: str,
    hidden_layers: int,
    width: int | None,
    target: TargetSize | None,
    one_in: int,
    threads: int,
) -> list[float]:
    """Microseconds of predicting, and of learning from, one batch."""
    from dnic.runtime.head_training import HeadTrainer
    from dnic.runtime.heads import HeadSpec, build_head

    dtype: torch.dtype = getattr(torch, dtype_name)
    spec = HeadSpec(hidden_layers, width, "none" if target is None else "target")
    targets = None if target is None else _targets(rows, target)
    head = build_head(
        sample,
        dtype,
        spec,
        target.classes if target else None,
        target.shape if target else None,
        targets.dtype if targets is not None else None,
    )
    trainer = HeadTrainer(head, spec.lr, one_in=one_in)
    h = torch.randn(rows, *sample, dtype=torch.float32).to(dtype)
    gradient = torch.randn_like(h) / rows
    clock = Clock(torch.device("cpu"), threads)

    layers = [nn.Linear(_BETWEEN_WIDTH, _BETWEEN_WIDTH) for _ in range(_BETWEEN_LAYERS)]
    others, noise = nn.Sequential(*layers), torch.randn(_BETWEEN_WIDTH, _BETWEEN_WIDTH)

    def once() -> tuple[float, float]:
        others(noise).sum().backward()
        start = clock()
        trainer.predict(h, targets)
        predicted_us = clock.between(start, clock())
        others(noise).sum().backward()
        start = clock()
        trainer.learn(h, targets, gradient)
        return predicted_us, clock.between(start, clock())

    return [typical(times) for times in repeated(once, _BUDGET_US)]


def _targets(rows: int, target: TargetSize) -> Tensor:
    if target.classes is None:
        return torch.randn(rows, *target.shape)
    return torch.randint(target.classes, (rows, *target.shape))
