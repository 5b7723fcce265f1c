"""What a gradient head costs, and how wide it may be.

The heads that a bundle runs (`dnic.runtime.heads`) map features to a gradient through k hidden
layers of width r: d->r (->r)* ->d, without hidden layers one linear map d->d or, with a width, its
two factors d->r->d; the target enters as a code of width r. Small tensors are one vector; larger
ones share one map between positions, and have a coarse map of the whole beside it. What is
multiplied with what is repeated here, because the compiler does not import the runtime; a test
holds the two together. Times are the roofline's, as the model's are. Only time decides the width:
how well a head of that width predicts is not known before training.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from math import prod

from dnic.cost.head_parts import (
    FLOAT_BYTES,
    HeadCost,
    Part,
    Source,
    TargetSize,
    channels_first,
    element_wise,
    layout_of,
    linear,
)
from dnic.cost.optimizer import update_rule, update_us
from dnic.cost.profile import DeviceProfile
from dnic.cost.tail import tail_cost
from dnic.graph.graph import Value
from dnic.graph.shape import Shape, Size, batch_multiple, resolve

# Heads of rank 8 lost 7 points of accuracy to rank 16 on the digits without BatchNorm.
NARROWEST = 16
WIDEST = 256
SLACK_SHARE = 0.05

_MOST_FLAT = 4096
_MOST_SLOTS = 16
_MOST_VALUES = 1024
_CELLS = 4
_FULL_CODE_WIDTH = 32

# Measured on one CPU thread. Learning walks through tensors of the activation's size beside the
# head's own arithmetic: scale and standardise the gradient, statistics of the input, error, cosine.
_LEARNING_WALKS = 14
_LEARNING_LAUNCHES = 20
# 1x1 convolutions of feature maps reach a third of what linear maps of the same size do.
_MAPS_FACTOR = 3.0


def head_features(value: Value) -> int:
    """Features of each position: the last axis of vectors and sequences, axis 1 of maps."""
    return layout_of(_samples(value.shape)[1])[0]


def head_cost(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    target: TargetSize | None = None,
    source: Source = "synthetic",
) -> HeadCost:
    """What the heads of all `values` that cross one interface cost together.

    `exact` and `stale` gradients come over the link: no head. `synthetic` heads are those of
    `dnic.runtime.heads`. `virtual` and `local` ones are a small tail (`dnic.cost.tail`).

    Args:
        values: the differentiable tensors, the batch on one axis; each has a head of its own.
        batch_size: samples in a batch.
        hidden_layers: 0 to 3.
        width: of the hidden layers; None is as wide as the tensor's features.
        profile: the device.
        target: what the heads see of the targets; None without context.
        source: where the gradient comes from.
    """
    cost = HeadCost()
    if source in ("exact", "stale"):
        return cost
    for value in values:
        count, sample = samples_of(value, batch_size)
        if source != "synthetic":
            cost += tail_cost(count, sample, hidden_layers, width, profile, target, source)
            continue
        cost += _one_head(count, sample, hidden_layers, width, profile, target)
    return cost


def samples_of(value: Value, batch_size: int) -> tuple[int, tuple[int, ...]]:
    """How many samples a head reads in a tensor of so large a batch, and the shape of one."""
    rows, sample = _samples(value.shape)
    return resolve((rows,), batch_size)[0], sample


def choose_width(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    slack_us: float,
    profile: DeviceProfile,
    target: TargetSize | None = None,
    costing: Callable[..., HeadCost] | None = None,
) -> int | None:
    """The widest head that fits a stage's slack: low-rank by default.

    A power of two from 16 to 256, at most the tensor's features: the widest that takes at most
    `slack_us` longer than width 16. What the narrowest head takes (starting its operations, walking
    through the gradient) is the price of any head: narrowing would not save it.

    Args:
        values: the differentiable tensors that cross, the batch on one axis.
        batch_size: samples in a batch.
        hidden_layers: 0 to 3.
        slack_us: time that width may cost: see `stage_slack_us`.
        profile: the device.
        target: what the heads see of the targets; None without context.
        costing: what a head of some width costs; None for `head_cost`.

    Returns:
        The width; None, full width, for tensors of at most 16 features.
    """
    features = max(head_features(value) for value in values)
    if features <= NARROWEST:
        return None

    def time_us(width: int) -> float:
        cost = costing or head_cost
        return cost(values, batch_size, hidden_layers, width, profile, target).total_us

    chosen = width = NARROWEST
    while width <= min(features, WIDEST) and time_us(width) - time_us(NARROWEST) <= slack_us:
        chosen = width
        width *= 2
    return chosen


def stage_slack_us(stage_us: float, slowest_us: float) -> float:
    """Time that width may add to a stage: 5% of its own, or all that it idles if that is more.

    Args:
        stage_us: time of the stage with the narrowest heads.
        slowest_us: time of the slowest stage.
    """
    return max(SLACK_SHARE * stage_us, slowest_us - stage_us)


@cache
def _one_head(
    rows: int,
    sample: tuple[int, ...],
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    target: TargetSize | None,
) -> HeadCost:
    """One head for `rows` samples of shape `sample`."""
    features, positions = layout_of(sample)
    code_width = width or features
    if width is None and hidden_layers == 0:
        code_width = _FULL_CODE_WIDTH
    informed = False
    part = Part(0, 0, 0.0)
    if target is not None:
        code, informed = _context(target, sample, code_width, rows, profile)
        part += code
    if width is not None and not informed and prod(sample) <= _MOST_FLAT:
        features, positions = prod(sample), ()
    count = rows * prod(positions)
    if width is None and hidden_layers == 0:
        part += linear(features, features, count, profile)
        # The map of the code is there even where no code comes.
        part += linear(_FULL_CODE_WIDTH, features, count if target else 0, profile)
    else:
        rank = width or features
        shared = _low_rank(features, rank, hidden_layers, count, profile)
        if positions and channels_first(sample):
            shared = replace(shared, forward_us=_MAPS_FACTOR * shared.forward_us)
        part += shared
    if positions and not informed and width is not None:
        cells = features * prod(min(size, _CELLS) for size in positions)
        part += _low_rank(cells, width, hidden_layers, rows, profile)
        part += element_wise(3, rows * prod(sample), profile)
    walks_us = element_wise(_LEARNING_WALKS, rows * prod(sample), profile).forward_us
    walks_us += _LEARNING_LAUNCHES * profile.overhead_us
    adam = update_rule("Adam", {"fused": True})
    adam_us = update_us(adam, FLOAT_BYTES * part.parameters, part.tensors, profile)
    train_us = 3 * part.forward_us + walks_us + adam_us
    return HeadCost(part.parameters, part.forward_us, train_us)


def _samples(shape: Shape) -> tuple[Size, tuple[int, ...]]:
    """How many rows a head reads in a tensor with the batch on at most one axis, and of what shape.

    The rows of a sample on a flattened axis (`[n*B, d]`) are positions, except where each is a
    picture of its own (`[n*B, c, h, w]`).
    """
    axes = [axis for axis, size in enumerate(shape) if batch_multiple(size)]
    axis = axes[0] if axes else 0
    rest = resolve((*shape[:axis], *shape[axis + 1 :]), 1)
    rows: Size = shape[axis] if shape else 1
    if batch_multiple(rows) > 1 and len(rest) <= 1:
        return "B", (batch_multiple(rows), *rest)
    return rows, rest


def _context(
    target: TargetSize,
    sample: tuple[int, ...],
    width: int,
    rows: int,
    profile: DeviceProfile,
) -> tuple[Part, bool]:
    """The code of the targets, and whether every position has one of its own."""
    _, positions = layout_of(sample)
    count, rank = prod(target.shape), len(positions)
    if target.classes is not None:
        alike = target.shape == positions or count > _MOST_SLOTS
        informed = bool(positions) and len(target.shape) == rank and alike
        slots = count if not informed and count <= _MOST_SLOTS else 1
        codes = rows * (prod(positions) if informed else 1)
        part = Part(slots * (target.classes + 1) * width, 1, 0.0)
        return part + element_wise(2, codes * width, profile), informed
    maps = channels_first(sample)
    informed = bool(positions) and len(target.shape) in (rank, rank + 1)
    if informed and not maps:
        informed = target.shape[:rank] == positions
    values = min(count, _MOST_VALUES)
    if informed:
        alone = len(target.shape) == rank
        values = 1 if alone else target.shape[0 if maps else -1]
    codes = rows * (prod(positions) if informed else 1)
    return linear(values, width, codes, profile), informed


def _low_rank(
    features: int, rank: int, hidden_layers: int, rows: int, profile: DeviceProfile
) -> Part:
    """Standardise, `features -> rank (-> rank)* -> features`, and the added code."""
    part = element_wise(1, rows * features, profile)
    part += linear(features, rank, rows, profile)
    for _ in range(hidden_layers - 1):
        part += linear(rank, rank, rows, profile)
    part += element_wise(hidden_layers + 1, rows * rank, profile)
    return part + linear(rank, features, rows, profile)
