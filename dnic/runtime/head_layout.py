"""Which axes of a crossing tensor are features, and which are positions that share one map."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor

MOST_POSITION_AXES = 3


@dataclass(frozen=True)
class Layout:
    """How a head reads a tensor.

    Attributes:
        features: how many features there are, F.
        positions: sizes of the position axes, at most three; () for one vector per sample.
        channels_first: whether the features precede the positions.
    """

    features: int
    positions: tuple[int, ...]
    channels_first: bool

    @property
    def count(self) -> int:
        """Number of positions, P; 1 for one vector per sample."""
        return prod(self.positions)

    def canonical(self, h: Tensor) -> Tensor:
        """`[B, F, P]` for maps; else `[N, F]`, where N counts samples, or samples' positions."""
        if not self.positions:
            return h.reshape(h.shape[0], -1)
        if self.channels_first:
            return h.reshape(h.shape[0], self.features, -1)
        return h.reshape(-1, self.features)

    def spread(self, code: Tensor) -> Tensor:
        """A code `[B, r]` or `[B, *positions, r]` so that it adds to a canonical hidden layer."""
        if not self.positions:
            return code
        if code.ndim == 2:
            return code.unsqueeze(2) if self.channels_first else self._repeated(code)
        code = code.flatten(1, -2)
        return code.transpose(1, 2) if self.channels_first else code.flatten(0, 1)

    def _repeated(self, code: Tensor) -> Tensor:
        return code.unsqueeze(1).expand(-1, self.count, -1).flatten(0, 1)


def layout_of(sample_shape: tuple[int, ...]) -> Layout:
    """The layout that a shape suggests.

    `[d]` is a vector, `[T, d]` a sequence, `[C, H, W]` a map. Where the two leading of three axes
    are equal and the last is not (`[14, 14, 384]`: attention over windows), the features are last.

    Args:
        sample_shape: without the batch axis.
    """
    if len(sample_shape) <= 1:
        return Layout(prod(sample_shape), (), channels_first=False)
    if len(sample_shape) == 2:
        return Layout(sample_shape[1], sample_shape[:1], channels_first=False)
    if len(sample_shape) == 3 and sample_shape[0] == sample_shape[1] != sample_shape[2]:
        return Layout(sample_shape[2], sample_shape[:2], channels_first=False)
    sizes = sample_shape[1:]
    if len(sizes) > MOST_POSITION_AXES:
        kept = MOST_POSITION_AXES - 1
        sizes = (*sizes[:kept], prod(sizes[kept:]))
    return Layout(sample_shape[0], sizes, channels_first=True)
