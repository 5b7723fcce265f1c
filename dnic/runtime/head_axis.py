"""Where in a crossing tensor the samples lie, and the tensor turned so that they come first.

Heads read `[B, *sample]`. Models that keep torch's sequence-first layout send `[T, B, D]`, and such
that flatten positions into rows `[n*B, D]`. Which axis follows the batch is known from the planned
shape; in which order rows lie is not: they are taken as batch-major, the n rows of a sample side by
side, as `view(B * n, D)` leaves them. Where a model has them the other way round (`[T, B, D]`
flattened) a head meets targets of other samples and learns less; what is computed stays right, as
every predicted gradient goes back to the place that it was read from.

Not handled: shapes with the batch on several axes (similarities `[B, B]`), which have no samples.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dnic.errors import RuntimeFault
from dnic.runtime.plan import Size, batch_multiple, resolve


@dataclass(frozen=True)
class BatchAxis:
    """How a tensor becomes one whose rows are samples, and its gradient a tensor again.

    Attributes:
        axis: the one that follows the batch.
        split: entries on it that belong to one sample and become an axis of their own.
    """

    axis: int = 0
    split: int = 1

    def to_front(self, tensor: Tensor) -> Tensor:
        """`[B, *sample_shape]`, contiguous where it had to be turned; `[1]` for a lone value.

        Raises:
            RuntimeFault: the axis holds no multiple of `split` entries.
        """
        if tensor.ndim == 0:
            return tensor.reshape(1)
        if tensor.shape[self.axis] % self.split:
            raise RuntimeFault(
                f"a head for {self.split} rows of each sample met a tensor of shape "
                f"{list(tensor.shape)}",
                expected="every batch of the shape that was compiled, but for the batch axis",
                hint="pad the inputs to one size, or compile with example_inputs() of this size",
            )
        turned = tensor.movedim(self.axis, 0).contiguous() if self.axis else tensor
        return turned.reshape(-1, self.split, *turned.shape[1:]) if self.split > 1 else turned

    def back(self, gradient: Tensor, like: Tensor) -> Tensor:
        """A gradient for what `to_front` returned, of the shape of its argument `like`."""
        if like.ndim == 0:
            return gradient.reshape(())
        rows = gradient.flatten(0, 1) if self.split > 1 else gradient
        return rows.movedim(0, self.axis).contiguous() if self.axis else rows


def batch_axis(shape: tuple[Size, ...]) -> tuple[BatchAxis, tuple[int, ...]]:
    """Where the samples of a planned shape lie, and the shape of one of them.

    `[T, B, D]` has samples `[T, D]`. `[n*B, D]` has samples `[n, D]`, but of `[n*B, C, H, W]` every
    row is read alone: the rows of a sample are pictures (frames, windows), not positions. A tensor
    that does not follow the batch has a row for each entry of axis 0.

    Args:
        shape: sizes that follow the batch as `B` or `<n>*B`.

    Raises:
        RuntimeFault: several axes follow the batch.
    """
    following = [axis for axis, size in enumerate(shape) if isinstance(size, str)]
    if len(following) > 1:
        raise RuntimeFault(
            f"a head cannot be built for [{', '.join(map(str, shape))}]",
            expected="a tensor with the batch on one axis",
            hint="set the interface to `gradient: exact` in plan.yaml",
        )
    if not following:
        return BatchAxis(), resolve(shape, 1)[1:]
    (axis,) = following
    rest = resolve((*shape[:axis], *shape[axis + 1 :]), 1)
    rows = batch_multiple(str(shape[axis]))
    if rows > 1 and len(rest) <= 1:
        return BatchAxis(axis, rows), (rows, *rest)
    return BatchAxis(axis), rest
