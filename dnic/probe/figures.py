"""Predicted beside true gradients: what is noted at every step, and what is said of a run.

`dnic.runtime.metrics` averages over epochs and knows cosine and norm; here the error itself counts,
because a gradient that is worse than none must not be taken.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

import torch
from torch import Tensor


@dataclass(frozen=True)
class Compared:
    """What predicted and true gradient of one batch multiply to, over all tensors.

    Attributes:
        predicted, true: squared norms.
        product: of the two.
    """

    predicted: float
    true: float
    product: float

    @property
    def cosine(self) -> float:
        """Of the angle between them; 0 where one of them is zero."""
        norms = sqrt(self.predicted * self.true)
        return self.product / norms if norms else 0.0

    @property
    def norm_ratio(self) -> float:
        """Norm of the predicted gradient over that of the true one, which is not zero."""
        return sqrt(self.predicted / self.true)

    @property
    def error(self) -> float:
        """Squared norm of the difference."""
        return max(self.predicted - 2 * self.product + self.true, 0.0)


def compare(predicted: Iterable[Tensor | None], true: Iterable[Tensor | None]) -> Compared:
    """Two gradients of several tensors; None stands for zeros."""
    sums = torch.zeros(3, dtype=torch.float64)
    for one, other in zip(predicted, true, strict=True):
        a = None if one is None else one.detach().reshape(-1).double()
        b = None if other is None else other.detach().reshape(-1).double()
        if a is not None:
            sums[0] += torch.dot(a, a)
        if b is not None:
            sums[1] += torch.dot(b, b)
        if a is not None and b is not None:
            sums[2] += torch.dot(a, b)
    return Compared(*sums.tolist())


@dataclass(frozen=True)
class Summary:
    """Figures of several steps; see `dnic.partition.probed.ProbedRow`."""

    cosine: float
    norm_ratio: float
    explained: float
    beats_zero: float


def summary(steps: Sequence[Compared]) -> Summary | None:
    """Figures of steps whose true gradient is not zero; None where there are none."""
    some = [step for step in steps if step.true > 0]
    if not some:
        return None
    return Summary(
        cosine=fmean(step.cosine for step in some),
        norm_ratio=fmean(step.norm_ratio for step in some),
        explained=1 - sum(step.error for step in some) / sum(step.true for step in some),
        beats_zero=fmean(step.error < step.true for step in some),
    )
