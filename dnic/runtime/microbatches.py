"""The microbatches of a batch: how many, and the batch made whole again.

Every process derives their number from the size of a batch alone, so that all agree without asking.
All microbatches of a batch are of one size, unlike those of `torch.distributed.pipelining`, whose
last chunk may be smaller and then has too much weight in a mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dnic.runtime.plan import Size, TensorSpec


@dataclass(frozen=True)
class Returned:
    """What crossed an interface and the true gradient for it, of a batch or one microbatch.

    Attributes:
        tensors: the differentiable ones, without their history.
        target: the targets.
        gradients: of the batch's mean loss, of the tensors' shapes; None where none came back.
        context: what a head sees beside them.
    """

    tensors: list[Tensor]
    target: Tensor
    gradients: list[Tensor] | None
    context: Sequence[Tensor] = ()


def microbatches(batch_size: int, most: int) -> int:
    """The largest divisor of a batch size that is not above `most`."""
    return next(n for n in range(min(most, batch_size), 0, -1) if batch_size % n == 0)


def whole(
    specs: Sequence[TensorSpec], parts: Sequence[Returned], context: Sequence[TensorSpec] = ()
) -> Returned:
    """A batch of its microbatches, in their order.

    A tensor that does not follow the batch is the same in all of them; its gradients add up.

    Args:
        specs: of the tensors.
        parts: at least one.
        context: of what is seen beside them, all of which follows the batch.
    """
    if len(parts) == 1:
        return parts[0]
    tensors, gradients = [], []
    for place, spec in enumerate(specs):
        axis = following_axis(spec.shape)
        of_parts = [part.gradients[place] for part in parts if part.gradients is not None]
        if axis is None:
            tensors.append(parts[0].tensors[place])
            gradients += [torch.stack(of_parts).sum(0)] if of_parts else []
        else:
            tensors.append(torch.cat([part.tensors[place] for part in parts], axis))
            gradients += [torch.cat(of_parts, axis)] if of_parts else []
    seen = [
        torch.cat([part.context[place] for part in parts], following_axis(spec.shape) or 0)
        for place, spec in enumerate(context)
    ]
    targets = torch.cat([part.target for part in parts])
    return Returned(tensors, targets, gradients or None, seen)


def following_axis(shape: Sequence[Size]) -> int | None:
    """The first axis of a planned shape that follows the batch; None where none does."""
    return next((axis for axis, size in enumerate(shape) if isinstance(size, str)), None)
