"""The scale between a tail's gradient and the true one.

A tail's loss is in units of its own. What its gradient is multiplied with before a stage takes it
is the running least-squares fit to the true gradient, `<r, g> / <r, r>`: then it does no worse than
zero on the batches that the fit is of, and neither the loss's units nor the size of a batch matter.
A fit that points away counts as zero.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from dnic.runtime.head_training import SCALE_MOMENTUM, dot
from dnic.runtime.predictor import PredictionStatistics

if TYPE_CHECKING:
    from dnic.runtime.replicas import Average

# A tail that points nowhere yet learns as if it were a little right: at zero it never would.
LEAST_COSINE = 0.1
_TINY = 1e-24


class RunningFit:
    """Running products of one tensor's gradients, the tail's and the true one, of single samples.

    Args:
        dtype: of the products.
        device: of the gradients.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        # Per element: the tail's with itself, with the true one, the true one with itself.
        self.products = torch.zeros(3, dtype=dtype, device=device)

    @property
    def factor(self) -> Tensor:
        """What the tail's gradient is multiplied with; 0 before the first `observe`."""
        own, both, _ = self.products.unbind()
        return both.clamp(min=0) / (own + _TINY)

    @property
    def learning_factor(self) -> Tensor:
        """The same while learning: not so small that nothing is learnt."""
        own, _, true = self.products.unbind()
        return torch.maximum(self.factor, LEAST_COSINE * (true / (own + _TINY)).sqrt())

    @property
    def unit(self) -> Tensor:
        """One over the root mean square of the true gradient."""
        return torch.rsqrt(self.products[2] + _TINY)

    def observe(
        self, own: Tensor, true: Tensor, momentum: float, average: Average | None = None
    ) -> None:
        """Moves the products towards those of a batch.

        `average` makes means over the whole batch of those over a replica's share.
        """
        seen = torch.stack([dot(own, own), dot(own, true), dot(true, true)]) / true.numel()
        if average is not None:
            seen = average(seen)
        self.products.lerp_(seen, max(momentum, SCALE_MOMENTUM))


def compared(
    pairs: Sequence[tuple[Tensor, Tensor]], units: Sequence[Tensor]
) -> PredictionStatistics:
    """How predicted gradients did: means over the tensors.

    Args:
        pairs: predicted and true gradient of each tensor, of single samples.
        units: by which each is multiplied for the normalised error.
    """
    rows = []
    for (predicted, true), unit in zip(pairs, units, strict=True):
        tiny = torch.finfo(predicted.dtype).tiny
        norms = dot(predicted, predicted).sqrt(), dot(true, true).sqrt()
        cosine = dot(predicted, true) / (norms[0] * norms[1]).clamp(min=tiny)
        error = ((predicted - true) * unit).square().mean()
        ratio = norms[0] / norms[1].clamp(min=tiny)
        rows.append(torch.stack([cosine, ratio, error, (true * unit).square().mean()]))
    return PredictionStatistics(*torch.stack(rows).mean(0).unbind())


def state_of(fits: Mapping[str, RunningFit]) -> dict[str, Tensor]:
    """The products of each tensor's fit, by its name."""
    return {name: fit.products for name, fit in fits.items()}
