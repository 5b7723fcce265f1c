"""What a head is told beside the activation: the targets, and tensors that a spec names.

Without the label a predicted gradient can be worse than none (cDNI: Jaderberg et al. 2016,
arXiv 1608.05343, section 2.1, where the context may be any further information). Each tensor
becomes a *code* that is added to the head's hidden layer: classes by an embedding, real values by a
linear map. The code is drawn wide, so that classes lie far apart from the first step on: the step
from code to gradient is then learnt within a few batches. Tensors that hold values of more than one
kind are not handled.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import prod
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.head_layout import Layout
from dnic.runtime.head_norm import RunningNorm

if TYPE_CHECKING:
    from dnic.runtime.replicas import Average

# Standard deviation of a code's entries beside hidden units of about 1.
CODE_STD = 4.0
# A sample with no more classes than these has an embedding for each; the others share one.
MOST_SLOTS = 16
# Longer real-valued targets of a whole sample are averaged down to this length.
MOST_VALUES = 1024
# Rows of the embedding of a tensor of integers of which nobody has said how many there are.
MOST_CODES = 1024


class Context(nn.Module, ABC):
    """Targets to codes of width r.

    Args:
        positions: positions of the code, () when there is one for each sample.
    """

    def __init__(self, positions: tuple[int, ...]) -> None:
        super().__init__()
        self.positions = positions

    @property
    def per_position(self) -> bool:
        """Whether every position has a code of its own."""
        return bool(self.positions)

    @abstractmethod
    def forward(self, target: Tensor, rows: int) -> Tensor:
        """Codes `[rows, r]`, or `[rows, *positions, r]`.

        Args:
            target: as batched.
            rows: size of axis 0 of the crossing tensor.
        """

    @abstractmethod
    def observe(self, target: Tensor, momentum: float, average: Average | None = None) -> None:
        """Moves running statistics, where there are any, towards this batch of targets."""


class ClassContext(Context):
    """An embedding of integer targets; everything outside `0..classes-1` (ignored) shares a row.

    Args:
        classes: number of categories.
        target_shape: of one sample's targets: () for one class per sample.
        layout: of the crossing tensor.
        width: r.
        dtype: of the codes.
    """

    def __init__(
        self,
        classes: int,
        target_shape: tuple[int, ...],
        layout: Layout,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        positions, count = layout.positions, prod(target_shape)
        # A few labels beside a long sequence are several tasks rather than a coarse sequence.
        alike = target_shape == positions or count > MOST_SLOTS
        aligned = bool(positions) and len(target_shape) == len(positions) and alike
        super().__init__(positions if aligned else ())
        self._classes = classes
        self._target_shape = target_shape
        self._slots = count if not aligned and count <= MOST_SLOTS else 1
        self.table = nn.Embedding(self._slots * (classes + 1), width, dtype=dtype)
        nn.init.normal_(self.table.weight, std=CODE_STD)

    def forward(self, target: Tensor, rows: int) -> Tensor:
        """Codes `[rows, r]`, or `[rows, *positions, r]`: targets of another size are resized."""
        # -1 and `classes` both become `classes`, the row of ignored targets.
        index = torch.remainder(target.long().clamp(-1, self._classes), self._classes + 1)
        index = fit_rows(index, rows, self._target_shape)
        if self.per_position or index.ndim == 1:
            code: Tensor = self.table(nearest(index, self.positions))
            return code
        index = index.flatten(1)
        if self._slots > 1:
            index = index + torch.arange(self._slots, device=index.device) * (self._classes + 1)
        return F.embedding_bag(index, self.table.weight, mode="mean")

    def observe(self, target: Tensor, momentum: float, average: Average | None = None) -> None:
        """Nothing: classes have no scale."""


class HashedContext(ClassContext):
    """An embedding of integers that are not targets: tokens, labels, time steps.

    How many there may be is not known. Two share a row if they differ by a multiple of the number
    of rows; where a sample has a few of them, each has a part of the rows.

    Args:
        shape: of one sample.
        layout: of the crossing tensor.
        width: r.
        dtype: of the codes.
    """

    def __init__(
        self, shape: tuple[int, ...], layout: Layout, width: int, dtype: torch.dtype
    ) -> None:
        super().__init__(hashed_classes(shape, layout), shape, layout, width, dtype)

    def forward(self, target: Tensor, rows: int) -> Tensor:
        """Codes `[rows, r]`, or `[rows, *positions, r]`."""
        return super().forward(torch.remainder(target.long(), self._classes), rows)


def hashed_classes(shape: tuple[int, ...], layout: Layout) -> int:
    """How many integers are told apart in a tensor, by the shape of one sample."""
    slots = 1 if shape == layout.positions or prod(shape) > MOST_SLOTS else prod(shape)
    return MOST_CODES // max(slots, 1)


class Values:
    """Real-valued (or boolean, or unbounded integer) targets, with the values of each last.

    `[B, T, k]` beside a sequence `[B, T, d]`, and `[B, k, H', W']` or `[B, H', W']` beside a map,
    are read position by position; everything else as one vector per sample.

    Args:
        target_shape: of one sample's targets.
        layout: of the crossing tensor.
        dtype: of what is read; None leaves it as it is.

    Attributes:
        positions: those of the layout, or () for one vector per sample.
        count: values of each position, or of a sample.
    """

    def __init__(
        self, target_shape: tuple[int, ...], layout: Layout, dtype: torch.dtype | None = None
    ) -> None:
        positions, channels_first = layout.positions, layout.channels_first
        rank = len(positions)
        aligned = bool(positions) and len(target_shape) in (rank, rank + 1)
        if aligned and not channels_first:
            aligned = target_shape[:rank] == positions
        self.positions = positions if aligned else ()
        self._first = aligned and channels_first and len(target_shape) == rank + 1
        self._lone = aligned and len(target_shape) == rank
        values = prod(target_shape)
        if aligned:
            values = 1 if self._lone else target_shape[0 if self._first else -1]
        self.count = values if aligned else min(values, MOST_VALUES)
        self._dtype = dtype

    def arranged(self, target: Tensor) -> Tensor:
        """`[rows, values]` or `[rows, *positions, values]`: maps of another size are averaged."""
        target = target.to(self._dtype)
        if not self.positions:
            flat = target.reshape(target.shape[0], -1)
            return flat if flat.shape[1] == self.count else _averaged(flat, self.count)
        if self._lone:
            target = target.unsqueeze(1)
        elif not self._first:
            return target
        if target.shape[2:] != self.positions:
            target = _averaged_map(target, self.positions)
        return target.movedim(1, -1)


class ValueContext(Context):
    """A linear map of real-valued targets: see `Values`.

    Args:
        target_shape: of one sample's targets.
        layout: of the crossing tensor.
        width: r.
        dtype: of the codes.
    """

    def __init__(
        self,
        target_shape: tuple[int, ...],
        layout: Layout,
        width: int,
        dtype: torch.dtype,
    ) -> None:
        values = Values(target_shape, layout, dtype)
        super().__init__(values.positions)
        self._target_shape = target_shape
        self._values = values
        self.norm = RunningNorm(values.count, -1, 2, dtype, floor=0)
        self.linear = nn.Linear(values.count, width, dtype=dtype)
        nn.init.normal_(self.linear.weight, std=CODE_STD / values.count**0.5)

    def forward(self, target: Tensor, rows: int) -> Tensor:
        """Codes `[rows, r]`, or `[rows, *positions, r]`: maps of another size are averaged."""
        values = self._values.arranged(fit_rows(target, rows, self._target_shape))
        code: Tensor = self.linear(self.norm(values.flatten(0, -2)))
        return code.view(*values.shape[:-1], -1)

    def observe(self, target: Tensor, momentum: float, average: Average | None = None) -> None:
        """Moves the running mean and variance of every value."""
        arranged = self._values.arranged(target).flatten(0, -2)
        self.norm.observe(arranged, momentum, average)


def fit_rows(target: Tensor, rows: int, target_shape: tuple[int, ...]) -> Tensor:
    """Targets with as many rows as the crossing tensor, whose axis 0 may hold `m*B` rows.

    Args:
        target: `[B, *target_shape]`.
        rows: size of axis 0 of the crossing tensor.
        target_shape: of one sample.

    Raises:
        RuntimeFault: when the rows are no multiple of the samples.
    """
    samples = target.shape[0]
    if samples == rows:
        return target
    if target_shape and samples * target_shape[0] == rows:
        return target.flatten(0, 1)
    if rows % max(samples, 1):
        raise RuntimeFault(
            f"a tensor of {rows} rows meets targets of {samples} samples",
            expected="a multiple of the samples: targets travel with their own batch",
        )
    return target.repeat_interleave(rows // samples, 0)


def nearest(index: Tensor, positions: tuple[int, ...]) -> Tensor:
    """`[B, *sizes]` resized to `[B, *positions]` by the nearest entry.

    `F.interpolate` does not take integers.
    """
    for axis, size in enumerate(positions, start=1):
        given = index.shape[axis]
        if given != size:
            centres = torch.arange(size, device=index.device) * 2 + 1
            index = index.index_select(axis, centres * given // (2 * size))
    return index


def _averaged(flat: Tensor, size: int) -> Tensor:
    return F.adaptive_avg_pool1d(flat.unsqueeze(1), size).squeeze(1)


def _averaged_map(target: Tensor, positions: tuple[int, ...]) -> Tensor:
    """`[B, k, *sizes]` to `[B, k, *positions]`, axis by axis."""
    for axis, size in enumerate(positions, start=2):
        moved = target.movedim(axis, -1)
        flat = F.adaptive_avg_pool1d(moved.reshape(moved.shape[0], -1, moved.shape[-1]), size)
        target = flat.view(*moved.shape[:-1], size).movedim(-1, axis)
    return target
