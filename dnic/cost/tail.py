"""What a virtual tail or a local loss costs: a small end of a network instead of a regressor.

A virtual tail (Miyato et al. 2017, "virtual forward-backward networks") and a local loss both put a
small network on the activation, down to the targets, and differentiate its loss. Counted here: a
normalisation, `features -> width (-> width)*` for k hidden layers, and the projection to the
classes (or to the values of a target); for each position where every position has a target, else
on the mean over the positions. With F the forward time of that,

    local    predict 3 F: forward, and backward to the activation and to the tail's weights at once;
             learn: Adam alone, the gradients are there
    virtual  predict 3 F: forward and backward; learn 6 F: the same with a graph of the backward
             pass, whose match with the true gradient is differentiated once more; Adam

The runtime's own heads of these kinds may differ in detail.
"""

from __future__ import annotations

from functools import cache
from math import prod
from typing import Literal

from dnic.cost.head_parts import (
    FLOAT_BYTES,
    HeadCost,
    Part,
    TargetSize,
    element_wise,
    layout_of,
    linear,
)
from dnic.cost.optimizer import update_rule, update_us
from dnic.cost.profile import DeviceProfile

_PREDICT = 3.0
_MATCH = 6.0
_NORM_WALKS = 2
_LOSS_WALKS = 3
# Of the activation's size: scale, difference, cosine, as synthetic heads do.
_MATCH_WALKS = 8


@cache
def tail_cost(
    rows: int,
    sample: tuple[int, ...],
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    target: TargetSize | None,
    source: Literal["virtual", "local"],
) -> HeadCost:
    """The tail on one tensor.

    Args:
        rows: samples in the batch.
        sample: shape of one.
        hidden_layers: 0 to 3, each `width` wide.
        width: of the hidden layers; None is as wide as the features.
        profile: the device.
        target: one sample's targets; without them the tail is taken to end as wide as it is.
        source: which of the two it is.
    """
    features, positions = layout_of(sample)
    rank = width or features
    outputs = rank
    informed = False
    if target is not None:
        informed = bool(positions) and target.shape[: len(positions)] == positions
        outputs = target.classes or max(prod(target.shape[len(positions) if informed else 0 :]), 1)
    count = rows * prod(positions) if informed else rows
    part = Part(2 * features, 2, 0.0) + element_wise(_NORM_WALKS, rows * prod(sample), profile)
    before = features
    for _ in range(hidden_layers):
        part += linear(before, rank, count, profile)
        before = rank
    part += linear(before, outputs, count, profile)
    part += element_wise(_LOSS_WALKS, count * outputs, profile)
    adam = update_rule("Adam", {"fused": True})
    train_us = update_us(adam, FLOAT_BYTES * part.parameters, part.tensors, profile)
    if source == "virtual":
        train_us += _MATCH * part.forward_us
        train_us += element_wise(_MATCH_WALKS, rows * prod(sample), profile).forward_us
    return HeadCost(part.parameters, _PREDICT * part.forward_us, train_us)
