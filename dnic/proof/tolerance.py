"""How far two computations of the same thing may differ, in one place.

The stages call the same kernels in the same order on the same device as the model does, so most
figures come out bit for bit equal. Two things may differ: a tensor that goes to several stages has
its gradients added in another order, and a kernel may pick another algorithm for a tensor with
other strides. Both are a few units in the last place of float32 (6e-8) for every addition.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Relative to the largest magnitude in the reference: room for ~100 additions in another order.
SPLIT = 1e-5
# Tensors smaller than this share of the largest of their kind are compared at that scale.
CANCELLED = 1e-2
SMALLEST = 1e-3
# Losses of two training runs: the same differences, fed back through some steps of an optimizer.
LOSSES = 1e-4


def error(ours: Tensor, reference: Tensor) -> float:
    """Largest absolute difference; infinite where shapes differ or one is not a number."""
    if ours.shape != reference.shape or ours.dtype != reference.dtype:
        return float("inf")
    if ours.is_meta or reference.is_meta:
        return 0.0  # Planned without weights: there are shapes only.
    if ours.numel() == 0 or torch.equal(ours, reference):
        return 0.0
    difference = (ours.double() - reference.double()).abs().max().item()
    return difference if difference == difference else float("inf")


def magnitude(tensor: Tensor) -> float:
    """Largest absolute value; 0 where there is none."""
    if tensor.numel() == 0 or tensor.is_meta:
        return 0.0
    return tensor.double().abs().max().item()


def close(ours: Tensor, reference: Tensor, tolerance: float, among: float = 0.0) -> bool:
    """Whether the largest difference is within `tolerance` of the reference's largest magnitude.

    Args:
        ours: what is compared.
        reference: with what.
        tolerance: relative.
        among: the largest magnitude of all tensors of this kind. Some gradients are sums that
            cancel (softmax does not see the bias of attention's keys): what is left is rounding,
            of the size of what was added. So a tensor is compared at least at 1% of this scale.
    """
    if reference.is_meta:
        return error(ours, reference) == 0.0
    scale = max(magnitude(reference), CANCELLED * among, SMALLEST)
    return error(ours, reference) <= tolerance * scale
