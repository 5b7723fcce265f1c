"""The last layer of a tail, and its loss: classes, real values, or the model's own loss.

Losses are means over what has a target, in units that do not depend on the batch. Classes outside
`0..classes-1` are ignored, as `F.cross_entropy` ignores -100; real values are standardised, so that
their units do not matter. Where there are too many classes see `dnic.runtime.tail_sampled` and
`dnic.runtime.tail_clustered`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnic.runtime.head_context import Values, nearest
from dnic.runtime.head_layout import Layout
from dnic.runtime.head_norm import RunningNorm
from dnic.runtime.loss import Loss, total_loss
from dnic.runtime.tail_aim import Aim

if TYPE_CHECKING:
    from dnic.runtime.replicas import Average

_IGNORED = -100


class Ending(nn.Module, ABC):
    """Features to a loss."""

    @abstractmethod
    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        """The mean loss, without axes.

        Args:
            z: `[B, F]`, or `[B, P, F]` where positions have targets.
            target: of the same samples.
        """

    def observe(self, target: Tensor, momentum: float, average: Average | None = None) -> None:
        """Moves running statistics of the targets, where there are any.

        `average` makes means over the whole batch of those over a replica's share.
        """

    def settle(self) -> None:
        """Ends what only the first batches change, as it is: before it is timed."""


class ClassEnding(Ending):
    """Logits, and cross-entropy.

    Args:
        features: F.
        aim: classes, and the targets' shape.
        layout: of the positions that have targets; None where samples have.
        dtype: of the parameters.
    """

    def __init__(self, features: int, aim: Aim, layout: Layout | None, dtype: torch.dtype) -> None:
        super().__init__()
        self._classes = aim.classes
        self._positions = layout.positions if layout is not None else ()
        self._slots = 1 if layout is not None else aim.slots
        self.linear = nn.Linear(features, self._slots * aim.classes, dtype=dtype)

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        """Of every target that is a class; 0 where none is."""
        index = class_index(target, self._positions)
        valid = (index >= 0) & (index < self._classes)
        logits: Tensor = self.linear(z)
        if not self._positions:
            logits = logits.view(-1, self._slots, self._classes)
        if logits.shape[1] == 1 and index.shape[1] > 1:  # many targets share one answer
            known = logits.log_softmax(-1).expand(-1, index.shape[1], -1)
            loss = -known.gather(-1, index.where(valid, 0).unsqueeze(-1)).squeeze(-1)
            return (loss * valid).sum() / valid.sum().clamp(min=1)
        loss = F.cross_entropy(
            logits.flatten(0, 1),
            index.where(valid, _IGNORED).flatten(),
            ignore_index=_IGNORED,
            reduction="sum",
        )
        return loss / valid.sum().clamp(min=1)


class ValueEnding(Ending):
    """Values, and their squared error in units of their running standard deviation.

    Args:
        features: F.
        aim: the targets' shape.
        layout: of the positions that have targets; None where samples have.
        dtype: of the parameters.
    """

    def __init__(self, features: int, aim: Aim, layout: Layout | None, dtype: torch.dtype) -> None:
        super().__init__()
        self._values = Values(aim.shape, layout or Layout(features, (), False), dtype)
        self.norm = RunningNorm(self._values.count, -1, 2, dtype, floor=0)
        self.linear = nn.Linear(features, self._values.count, dtype=dtype)

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        """Half of the mean squared error: its gradient is the error itself."""
        values = self.norm(self._values.arranged(target).flatten(0, -2))
        return 0.5 * F.mse_loss(self.linear(z).reshape(values.shape), values)

    def observe(self, target: Tensor, momentum: float, average: Average | None = None) -> None:
        """Moves the running mean and variance of every value."""
        self.norm.observe(self._values.arranged(target).flatten(0, -2), momentum, average)


class ModelEnding(Ending):
    """Something of the shape of the model's output, and the model file's loss.

    Args:
        features: F.
        aim: the output's shape.
        layout: of the positions that have outputs; None where samples have.
        loss: `loss(output, target)`.
        dtype: of the parameters.
    """

    def __init__(
        self, features: int, aim: Aim, layout: Layout | None, loss: Loss, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self._shape = aim.shape
        self._loss = loss
        self._first = layout is not None and layout.channels_first and layout.positions != aim.shape
        self.linear = nn.Linear(features, model_outputs(aim, layout), dtype=dtype)

    def forward(self, z: Tensor, target: Tensor) -> Tensor:
        """What the model file says."""
        output = self.linear(z)
        if self._first:
            output = output.transpose(1, 2)
        return total_loss(self._loss, output.reshape(-1, *self._shape), target)


def model_outputs(aim: Aim, layout: Layout | None) -> int:
    """How many numbers a tail yields for each sample, or each position, of the model's output."""
    return prod(aim.shape) // (layout.count if layout is not None else 1)


def class_index(target: Tensor, positions: tuple[int, ...]) -> Tensor:
    """`[B, P]`, or `[B, targets of a sample]`: targets of another size are resized."""
    index = target.long()
    if positions:
        index = nearest(index, positions)
    return index.reshape(index.shape[0], -1)


def scored_rows(
    z: Tensor, target: Tensor, positions: tuple[int, ...], classes: int
) -> tuple[Tensor, Tensor, Tensor]:
    """What is scored against a class each, one row for every target.

    Args:
        z: `[B, P, F]`, or `[B, F]` where samples have the targets: each of these reads all of it.
        target: classes; others than 0 to `classes - 1` do not count.
        positions: that have targets; `()` where samples have.
        classes: how many there are.

    Returns:
        `[N, F]`; the class of each row `[N]`, 0 where it does not count; whether it counts `[N]`.
    """
    index = class_index(target, positions)
    if not positions:
        z = z.unsqueeze(1).expand(-1, index.shape[1], -1)
    z, index = z.flatten(0, 1), index.flatten()
    valid = (index >= 0) & (index < classes)
    return z, index.where(valid, 0), valid
