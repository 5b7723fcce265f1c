"""Whole steps of a model in children: alone at several shares, then one on each of two cores."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dnic.cost.child import ChildFailed, in_child, in_children
from dnic.cost.clock import Clock, typical
from dnic.cost.costs import Crowding
from dnic.cost.machine import available_bytes
from dnic.cost.optimizer import update_rule
from dnic.cost.whole import Loss, Step, StepTimes, step_times, steps_until
from dnic.runtime.plan import Precision
from dnic.trace import TracedModel, recorded

_STEP_FIELDS = 6
_SAFETY = 1.5
_ROUNDS = 3


@dataclass(frozen=True)
class Trial:
    """What was measured.

    Attributes:
        steps: at shares of the batch, the first at the full one.
        crowding: two at once against one alone; None where it was not measured.
    """

    steps: tuple[StepTimes, ...]
    crowding: Crowding | None = None

    def numbers(self) -> list[float]:
        """As a flat list, for keeping."""
        found = [float(len(self.steps))]
        for s in self.steps:
            found += [s.share, s.forward_us, s.backward_us, s.update_us]
            found += [s.loss_forward_us, s.loss_backward_us]
        if self.crowding is not None:
            found += [self.crowding.forward, self.crowding.backward, self.crowding.update]
        return found

    @classmethod
    def of(cls, numbers: Sequence[float]) -> Trial:
        """Back from `numbers`."""
        count = int(numbers[0])
        rows = [numbers[1 + _STEP_FIELDS * i :][:_STEP_FIELDS] for i in range(count)]
        rest = numbers[1 + _STEP_FIELDS * count :]
        return cls(tuple(StepTimes(*row) for row in rows), Crowding(*rest) if rest else None)


def try_whole(
    traced: TracedModel,
    batch: tuple[Any, Any],
    optimizer: str,
    options: Mapping[str, Any] | None,
    loss: Loss | None,
    on: Sequence[int],
    timeout_s: float,
    precision: Precision = "fp32",
) -> Trial | None:
    """Train the model in children for a few seconds.

    Args:
        traced: the capture of a model with weights.
        batch: inputs and targets (None without a loss).
        optimizer: name of a `torch.optim` class.
        options: its keyword arguments.
        loss: of output and targets.
        on: cores; from two on, two children also run at once.
        timeout_s: for each of the two measurements.
        precision: of forward and loss.

    Returns:
        None where memory does not suffice or the model does not train.
    """
    copies = 2 if len(on) > 1 else 1
    free = available_bytes()
    need = training_bytes(traced, optimizer, options)
    if free is not None and _SAFETY * need > free:
        return None
    if free is not None and _SAFETY * need * copies > free:
        copies = 1
    inputs, target = batch

    def alone() -> list[StepTimes]:
        step = Step(traced, optimizer, options, _clock(), loss, precision)
        return step_times(step, inputs, target, traced.batch_size)

    def together() -> tuple[float, float, float]:
        step = Step(traced, optimizer, options, _clock(), loss, precision)
        return steps_until(step, inputs, target, start_s)

    try:
        steps = tuple(in_child(alone, on[0] if on else None, timeout_s))
    except ChildFailed:
        return None
    if copies < 2:
        return Trial(steps)
    full = steps[0]
    step_s = (full.forward_us + full.backward_us + full.update_us) / 1e6
    rounds = []
    try:
        for _ in range(_ROUNDS):
            start_s = time.perf_counter() + 0.2 + 3 * step_s
            (single,) = in_children(together, on[:1], timeout_s)
            start_s = time.perf_counter() + 0.2 + 3 * step_s
            pair = in_children(together, on[:2], timeout_s)
            rounds.append(
                [
                    sum(times) / len(pair) / one if one else 1.0
                    for one, times in zip(single, zip(*pair, strict=True), strict=True)
                ]
            )
    except ChildFailed:
        return Trial(steps)
    forward, backward, update = (max(typical(ratios), 1.0) for ratios in zip(*rounds, strict=True))
    return Trial(steps, Crowding(forward, backward, update))


def training_bytes(traced: TracedModel, optimizer: str, options: Mapping[str, Any] | None) -> int:
    """About what training takes in a forked child: weights once more, as they are written to."""
    weights = sum(p.numel() * p.element_size() for p in traced.module.parameters())
    tensors = (recorded(node).tensor for node in traced.graph.nodes)
    activations = sum(facts.nbytes for facts in tensors if facts is not None)
    return weights * (2 + update_rule(optimizer, options).state) + 2 * activations


def _clock() -> Clock:
    import torch

    return Clock(torch.device("cpu"))
