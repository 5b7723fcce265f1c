"""A whole model's training step, timed: what its operations must add up to.

An operation alone finds its tensors in the cache, and its results in memory that was just freed;
in a model it does not. So the step is run as it is, at several shares of the batch, and the
operations' times are scaled to it. Runs in a forked child (`child`), where training the model does
no harm.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnic.cost.clock import Clock, repeated, typical
from dnic.cost.walk import smaller
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.plan import Precision
from dnic.runtime.precision import autocast
from dnic.trace import TracedModel, as_compilers_see_it, fresh, has_own_loss, tensors_in
from dnic.trace import without_cache as without_kv

SHARES = (1.0, 0.5, 0.25, 0.125)
_FULL_BUDGET_US = 1.2e6
_SHARE_BUDGET_US = 0.5e6
_CROWD_S = 0.35
_WARM = 2

# Of the model's output and a batch of targets.
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class StepTimes:
    """Microseconds of one training step, at a share of the batch.

    `loss_forward_us` and `loss_backward_us` are the part of the other two that the loss takes.
    """

    share: float
    forward_us: float
    backward_us: float
    update_us: float
    loss_forward_us: float = 0.0
    loss_backward_us: float = 0.0


def make_optimizer(
    name: str, options: Mapping[str, Any] | None, parameters: Sequence[nn.Parameter]
) -> torch.optim.Optimizer:
    """The real optimizer, at a learning rate of zero."""
    kind: type[torch.optim.Optimizer] = getattr(torch.optim, name)
    return kind(parameters, **{**(options or {}), "lr": 0.0})


class Step:
    """A training step of a model, in its phases.

    Args:
        traced: the capture; its model is trained here (at a learning rate of zero).
        optimizer: name of a `torch.optim` class.
        options: its keyword arguments.
        clock: of the device.
        loss: of the model's output and the targets; without it, each output's gradient is noise.
        precision: of forward and loss.
    """

    def __init__(
        self,
        traced: TracedModel,
        optimizer: str,
        options: Mapping[str, Any] | None,
        clock: Clock,
        loss: Loss | None = None,
        precision: Precision = "fp32",
    ) -> None:
        self._traced = traced
        self._precision = precision
        self._clock = clock
        self._loss = loss
        self._own_loss = has_own_loss(traced)
        traced.module.train()
        trained = [p for p in traced.module.parameters() if p.requires_grad]
        self._optimizer = make_optimizer(optimizer, options, trained) if trained else None

    def times(self, inputs: Any, target: Any, share: float, budget_us: float) -> StepTimes:
        """Times of a step on these inputs and targets."""
        # Long steps have few runs, of which the first ones still make the heap grow.
        for _ in range(_WARM):
            self.run(inputs, target)
        phases = repeated(lambda: self.run(inputs, target), budget_us, least=4)
        forward, backward, update = map(typical, phases)
        if self._loss is None or self._own_loss:
            return StepTimes(share, forward, backward, update)
        heads, tails = repeated(self._loss_alone(inputs, target), budget_us / 10)
        return StepTimes(share, forward, backward, update, typical(heads), typical(tails))

    def run(self, inputs: Any, target: Any) -> tuple[float, float, float]:
        """One step; microseconds of forward, backward and update."""
        clock = self._clock
        given = fresh(inputs)
        with self._settings():
            start = clock()
            output = self._call(given)
            ends = self._ends(output, target)
            ran = clock()
        gradients = [None if end.dim() == 0 else torch.randn_like(end) for end in ends]
        begin = clock()
        if ends:
            torch.autograd.backward(ends, gradients)
        done = clock()
        del output, ends, gradients
        updating = clock()
        if self._optimizer is not None:
            self._optimizer.step()
            clear_gradients(self._optimizer)
        return (
            clock.between(start, ran),
            clock.between(begin, done),
            clock.between(updating, clock()),
        )

    def _call(self, inputs: Any) -> Any:
        model = self._traced.module
        return model(**inputs) if isinstance(inputs, Mapping) else model(*inputs)

    def _ends(self, output: Any, target: Any) -> list[Tensor]:
        """Tensors at which backward starts."""
        found = [t for t in _tensors(output) if t.requires_grad]
        if self._own_loss:
            return [t for t in found if t.dim() == 0][:1]
        if self._loss is not None:
            return [self._loss(output, target)]
        return list({id(t): t for t in found}.values())

    def _loss_alone(self, inputs: Any, target: Any) -> Callable[[], tuple[float, float]]:
        with torch.no_grad(), self._settings():
            output = self._call(fresh(inputs))
        alone = _detached(output)
        loss, clock = self._loss, self._clock

        def once() -> tuple[float, float]:
            start = clock()
            with self._autocast():
                end = loss(alone, target)  # type: ignore[misc]  # only called with a loss
            ran = clock()
            torch.autograd.backward([end])
            return clock.between(start, ran), clock.between(ran, clock())

        return once

    def _settings(self) -> _Settings:
        return _Settings(self._traced, self._autocast())

    def _autocast(self) -> AbstractContextManager[object]:
        return autocast(self._precision, self._clock.device)


class _Settings:
    """The settings under which the model was captured, and the precision of a run."""

    def __init__(self, traced: TracedModel, precision: AbstractContextManager[object]) -> None:
        compiling = as_compilers_see_it(bool(traced.compiling))
        self._held = (without_kv(traced.module), compiling, precision)

    def __enter__(self) -> None:
        for manager in self._held:
            manager.__enter__()

    def __exit__(self, *error: Any) -> None:
        for manager in reversed(self._held):
            manager.__exit__(*error)


def step_times(
    step: Step,
    inputs: Any,
    target: Any,
    batch_size: int,
    progress: Callable[[str], None] | None = None,
) -> list[StepTimes]:
    """Times at the full batch and at those shares of it at which the model runs.

    Raises:
        Exception: whatever the model raises on the full batch.
    """
    found = []
    for share in SHARES:
        count = round(batch_size * share)
        if count < 1 or count != batch_size * share:
            continue
        if progress is not None:
            progress(f"batch of {count}")
        part, wanted = smaller((inputs, target), batch_size, count)
        budget_us = _FULL_BUDGET_US if share == 1 else _SHARE_BUDGET_US
        try:
            found.append(step.times(part, wanted, share, budget_us))
        except (RuntimeError, ValueError, TypeError, IndexError):
            if share == 1:
                raise
    return found


def steps_until(step: Step, inputs: Any, target: Any, start_s: float) -> tuple[float, float, float]:
    """Warm up until `start_s` (of `time.perf_counter`), then measure for a while and go on a bit.

    For children that run at the same time: each is measured only while the others run too.

    Returns:
        Microseconds of forward, backward and update.
    """
    for _ in range(_WARM):
        step.run(inputs, target)
    while time.perf_counter() < start_s:
        step.run(inputs, target)
    rows: list[tuple[float, float, float]] = []
    while time.perf_counter() < start_s + _CROWD_S or len(rows) < 3:
        rows.append(step.run(inputs, target))
    while time.perf_counter() < start_s + 1.25 * _CROWD_S:
        step.run(inputs, target)
    forward, backward, update = (typical(phase) for phase in zip(*rows, strict=True))
    return forward, backward, update


def _tensors(output: Any) -> Iterator[Tensor]:
    yield from tensors_in(output)


def _detached(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().requires_grad_(value.is_floating_point())
    if isinstance(value, Mapping):
        return {key: _detached(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(_detached(entry) for entry in value)
    return value
