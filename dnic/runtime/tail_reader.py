"""How a tail reads a crossing tensor: standardised, and as features of positions or of samples.

Where every position has a target, each is read alone. Else a sample is one vector: small tensors
as they are, because what follows (a flatten, a pool) treats positions differently; larger ones
averaged to at most 4 cells per axis. A layer that all positions share before that average was tried
on maps: the cosine with the true gradient fell from 0.43 to 0.11. A tensor that does not follow the
batch is one sample that all samples see.

Sequences read by position have a `LayerNorm`, as the next block of a transformer has; everything
else running statistics (`dnic.runtime.head_norm`).
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.head_axis import BatchAxis, batch_axis
from dnic.runtime.head_coarse import CELLS_PER_AXIS, SHRINK
from dnic.runtime.head_layout import layout_of
from dnic.runtime.head_norm import RunningNorm
from dnic.runtime.heads import MOST_FLAT, MOST_OBSERVED, batched
from dnic.runtime.plan import Size, batch_multiple, resolve

if TYPE_CHECKING:
    from dnic.runtime.replicas import Average


class Reading:
    """Where the samples of a crossing tensor lie, by its planned shape.

    Attributes:
        axis: turns it so that samples come first.
        sample_shape: of a row then.
        follows: whether it has rows for each sample.
        rows: how many for each.
        layout: of a row.
    """

    def __init__(self, shape: tuple[Size, ...]) -> None:
        self.axis: BatchAxis
        self.axis, self.sample_shape = batch_axis(shape)
        following = [size for size in shape if isinstance(size, str)]
        self.follows = bool(following)
        self.rows = batch_multiple(following[0]) // self.axis.split if following else 1
        if not following:
            self.axis, self.sample_shape = BatchAxis(), resolve(shape, 1)
        self.layout = layout_of(self.sample_shape)

    def front(self, tensor: Tensor) -> Tensor:
        """`[rows, *sample_shape]`; `[1, *shape]` of a tensor that does not follow the batch."""
        return self.axis.to_front(tensor) if self.follows else tensor.unsqueeze(0)

    def back(self, gradient: Tensor, like: Tensor) -> Tensor:
        """The gradient of `front`'s result, as one of its argument `like`."""
        return self.axis.back(gradient, like) if self.follows else gradient.squeeze(0)


class Reader(nn.Module):
    """Reads one tensor.

    Args:
        reading: where its samples lie.
        aligned: whether positions are read one by one.
        dtype: of parameters and features.

    Attributes:
        features: of a sample, or of a position.
    """

    def __init__(self, reading: Reading, aligned: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.reading = reading
        self.dtype = dtype
        layout, flat = reading.layout, prod(reading.sample_shape)
        self._layout = layout
        self._aligned = aligned
        self._flat = not aligned and flat <= MOST_FLAT
        self._cells = tuple(min(size, CELLS_PER_AXIS) for size in layout.positions)
        self.layer_norm: nn.LayerNorm | None = None
        self.norm: RunningNorm | None = None
        if aligned:
            self.features = layout.features
        elif self._flat:
            self.features = flat
        else:
            self.features = layout.features * prod(self._cells)
        if not reading.follows or (aligned and not layout.channels_first):
            self.layer_norm = nn.LayerNorm(self.features, dtype=dtype)
        elif self._flat:
            self.norm = RunningNorm(flat, 1, 2, dtype)
        else:
            self.norm = RunningNorm(layout.features, 1, 3, dtype)

    def forward(self, front: Tensor) -> Tensor:
        """Features `[B, F]`, or `[B, P, F]` by position; `[1, F]` for all samples.

        Args:
            front: `[rows, *sample_shape]`.

        Raises:
            RuntimeFault: it has another shape than planned.
        """
        x = self._arranged(front)
        if self.layer_norm is not None:
            if not self._aligned and not self._flat:
                x = self._pooled(x)
            normed: Tensor = self.layer_norm(x)
            return normed
        assert self.norm is not None  # one of the two is there
        x = self.norm(x)
        if self._aligned:
            turned: Tensor = x.transpose(1, 2)
            return turned
        if not self._flat:
            x = self._pooled(x)
        rows = self.reading.rows
        return x if rows == 1 else x.view(-1, rows, x.shape[1]).mean(1)

    @torch.no_grad()
    def observe(self, front: Tensor, momentum: float, average: Average | None = None) -> None:
        """Moves the running statistics, where there are any, by `momentum` (0 to 1).

        `average` makes means over the whole batch of those over a replica's share.
        """
        if self.norm is not None:
            some = front[: max(1, MOST_OBSERVED // prod(self.reading.sample_shape))]
            self.norm.observe(self._arranged(some), momentum, average)

    def _arranged(self, front: Tensor) -> Tensor:
        """`[rows, F]`; `[rows, P, F]` for a `LayerNorm` by position; else `[rows, F, P]`."""
        shape = self.reading.sample_shape
        if front.shape[1:] != shape:
            raise RuntimeFault(
                f"a tail for {batched(shape)} met a tensor of shape {list(front.shape)}",
                expected="every batch of the shape that was compiled, but for the batch axis",
                hint="pad the inputs to one size, or compile with example_inputs() of this size",
            )
        x, features = front.to(self.dtype), self._layout.features
        if self._flat:
            return x.flatten(1)
        if self._layout.channels_first or not self._layout.positions:
            return x.reshape(x.shape[0], features, -1)
        x = x.reshape(x.shape[0], -1, features)
        return x if self._aligned else x.transpose(1, 2)

    def _pooled(self, x: Tensor) -> Tensor:
        """`[rows, F, P]` to `[rows, F * cells]`."""
        if not self._cells:
            return x.flatten(1)
        maps = x.reshape(x.shape[0], x.shape[1], *self._layout.positions)
        return SHRINK[len(self._cells)](maps, self._cells).flatten(1)
