"""Running standardisation of what a head reads.

A head learns online from few pairs, so its inputs must be centred and of one scale: on nets without
normalisation that halved what a head costs in accuracy. `nn.BatchNorm`
would let a prediction depend on its batch and moves its statistics with a fixed momentum, which is
slow to start; `nn.LayerNorm` leaves the mean activation of a net without normalisation in place.
Here the statistics move only when the head learns, and start as plain averages. Replicas share
them: they are those of the whole batch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from dnic.runtime.replicas import Average

VARIANCE_FLOOR = 1e-2
_TINY = 1e-24


class RunningNorm(nn.Module):
    """Standardises every feature by running statistics; the identity before the first `observe`.

    Args:
        features: number of features, F.
        axis: of the features, not 0.
        rank: number of axes of the input, the batch included.
        dtype: floating point type of the statistics.
        floor: a variance counts as at least this part of the mean variance, so that features that
            hardly vary are not blown up; 0 where features have units of their own.
    """

    mean: Tensor
    variance: Tensor
    factor: Tensor
    shift: Tensor

    def __init__(
        self,
        features: int,
        axis: int,
        rank: int,
        dtype: torch.dtype,
        floor: float = VARIANCE_FLOOR,
    ) -> None:
        super().__init__()
        self._floor = floor
        shape = [1] * rank
        shape[axis] = features
        self._others = [i for i in range(rank) if i != axis % rank]
        self.register_buffer("mean", torch.zeros(shape, dtype=dtype))
        self.register_buffer("variance", torch.ones(shape, dtype=dtype))
        self.register_buffer("factor", torch.ones(shape, dtype=dtype))
        self.register_buffer("shift", torch.zeros(shape, dtype=dtype))

    @torch.no_grad()
    def observe(self, x: Tensor, momentum: float, average: Average | None = None) -> None:
        """Moves the statistics towards those of `x` by `momentum`, 0 to 1.

        `average` makes means over the whole batch of those over a replica's share.
        """
        # Far from the mean squares would cancel. `torch.var_mean` would do, in ten times the time.
        away = x - self.mean
        shift = away.mean(self._others, keepdim=True)
        square = away.square_().mean(self._others, keepdim=True)
        if average is not None:
            shift, square = average(torch.stack((shift, square))).unbind()
        variance = square.sub_(shift.square()).clamp_(min=0)
        self.mean.lerp_(self.mean + shift, momentum)
        self.variance.lerp_(variance, momentum)
        floor = self._floor * self.variance.mean() + _TINY
        torch.rsqrt(self.variance + floor, out=self.factor)
        torch.mul(self.mean, self.factor, out=self.shift).neg_()

    def forward(self, x: Tensor) -> Tensor:
        """Shape in, shape out."""
        return torch.addcmul(self.shift, x, self.factor)
