"""The gradient that a step is really after: that of other samples than the batch at hand.

A batch's own gradient is mostly noise: a direction may have little in common with it and lower the
loss of everything else as well. How much a direction is worth shows beside the gradient of batches
that it has not seen. They are of the training data, in an order of their own, and go through the
model with its weights as they are; buffers and random numbers are put back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn

from dnic.probe.figures import Compared, compare
from dnic.runtime.inputs import Batch
from dnic.runtime.seeds import random_state, restore_random_state
from dnic.trace import untouched

# Batches of which the mean is taken.
BATCHES = 4
FEWEST_CHECKS = 3
# A standard error of progress; beyond, half of the progress is hardly told from all of it.
LARGEST_ERROR = 0.2

Gradients = Mapping[str, Tensor | None]


@dataclass(frozen=True)
class Check:
    """A direction for some parameters, beside the true gradient of the batch and the expected one.

    Attributes:
        compared: with the true gradient of the same batch.
        along, true_along: lengths along the expected gradient of the direction and of the true
            gradient, both at length 1.
    """

    compared: Compared
    along: float
    true_along: float


def check(
    direction: Sequence[Tensor | None],
    true: Sequence[Tensor | None],
    expected: Sequence[Tensor | None],
) -> Check:
    """The same parameters' parts of all three; None stands for zeros."""
    return joined(compare(direction, true), compare(direction, expected), compare(true, expected))


def joined(compared: Compared, direction: Compared, true: Compared) -> Check:
    """A check from comparisons: with each other, and of both with the expected gradient."""
    return Check(compared, _along(direction), _along(true))


def progress(checks: Sequence[Check]) -> tuple[float, float] | None:
    """Progress of steps along the directions over that of steps along the true gradients.

    With its standard error.

    None where it is lost in noise: its standard error is large, or of too few checks to be known.
    The expected gradient is a mean over few batches, and where nothing is left to be learnt, as on
    a small data set after a few epochs, it has nothing in common with any other batch's.
    """
    count, true = len(checks), sum(check.true_along for check in checks)
    if count < FEWEST_CHECKS or true <= 0:
        return None
    ratio = sum(check.along for check in checks) / true
    errors = sum((check.along - ratio * check.true_along) ** 2 for check in checks)
    standard_error = sqrt(errors * count / (count - 1)) / true
    return (ratio, standard_error) if standard_error <= LARGEST_ERROR else None


def gradients_now(
    model: nn.Module, loss_of: Callable[[Batch], Tensor], batch: Batch
) -> dict[str, Tensor | None]:
    """The gradients of a batch's loss by parameter; the model is left as it was."""
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with untouched(model):
        found = torch.autograd.grad(loss_of(batch), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


class Expected:
    """Mean gradients of batches that nothing else sees.

    Args:
        model: that trains.
        loss_of: one forward pass of a batch, to its loss.
        feed: the batches, without end.
    """

    def __init__(
        self, model: nn.Module, loss_of: Callable[[Batch], Tensor], feed: Iterator[Batch]
    ) -> None:
        self._model = model
        self._loss_of = loss_of
        self._feed = feed

    def gradients(self) -> Gradients:
        """The mean over some batches, with the weights as they are."""
        total: dict[str, Tensor | None] = {}
        with chance(random_state()):
            for _ in range(BATCHES):
                found = gradients_now(self._model, self._loss_of, next(self._feed))
                for name, gradient in found.items():
                    before = total.get(name)
                    total[name] = gradient if before is None else _sum(before, gradient)
        return total


@contextmanager
def chance(state: dict[str, Any]) -> Iterator[None]:
    """Every generator in a state inside, and as it was afterwards."""
    before = random_state()
    restore_random_state(state)
    try:
        yield
    finally:
        restore_random_state(before)


def _sum(one: Tensor, other: Tensor | None) -> Tensor:
    return one if other is None else one + other


def _along(compared: Compared) -> float:
    return compared.product / sqrt(compared.predicted) if compared.predicted > 0 else 0.0
