"""What a gradient head costs.

The heads that a bundle runs (`dnic.runtime.heads`) map features to a gradient through k hidden
layers of width r: d->r (->r)* ->d, without hidden layers one linear map d->d or, with a width, its
two factors d->r->d; the target enters as a code of width r. Small tensors are one vector; larger
ones share one map between positions, and have a coarse map of the whole beside it. What is
multiplied with what is repeated here, because the compiler does not import the runtime; a test
holds the two together. Times are the roofline's, as the model's are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from math import prod
from typing import Literal

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
from dnic.cost.tail import TailChoice, tail_cost
from dnic.graph.graph import Value
from dnic.graph.shape import Shape, Size, batch_multiple, resolve

MOST_FLAT = 4096
_MOST_SLOTS = 16
_MOST_VALUES = 1024
_MOST_CODES = 1024
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
    one_in: int = 1,
    tail: TailChoice = TailChoice(),  # noqa: B008  # frozen
    beside: tuple[Value, ...] = (),
) -> HeadCost:
    """What the heads of all `values` that cross one interface cost together.

    `exact` and `stale` gradients come over the link, `none` is zero: no head. `synthetic` heads are
    those of `dnic.runtime.heads`. `virtual` and `local` ones are a small tail for all of them
    (`dnic.cost.tail`). Sources that somebody registered are taken to cost what a synthetic head
    does: nothing is known of them before they are built (`dnic.cost.head_time`).

    Args:
        values: the differentiable tensors, the batch on one axis.
        batch_size: samples in a batch.
        hidden_layers: 0 to 3.
        width: of the hidden layers; None is as wide as the tensor's features.
        profile: the device.
        target: what the heads see of the targets; None without context.
        source: where the gradient comes from.
        one_in: it learns from one in so many samples of a batch.
        tail: what a tail is scored by.
        beside: what heads see beside the activation and the targets.
    """
    cost = HeadCost()
    if source in ("exact", "stale", "none") or not values:
        return cost
    if source in ("virtual", "local"):
        kind: Literal["virtual", "local"] = "virtual" if source == "virtual" else "local"
        given = values, batch_size, hidden_layers, width, profile, target
        return tail_cost(*given, kind, one_in, tail)
    targets = () if target is None else (target,)
    for value in values:
        count, sample = samples_of(value, batch_size)
        seen = targets + tuple(_seen(tensor, sample) for tensor in beside)
        cost += _one_head(count, sample, hidden_layers, width, profile, seen, one_in)
    return cost


def _seen(tensor: Value, sample: tuple[int, ...]) -> TargetSize:
    """What a head for `sample` sees of a tensor that a spec names: values, or integers' remainders.

    As `dnic.runtime.head_context` has it.
    """
    shape = _samples(tensor.shape)[1]
    if tensor.dtype.startswith(("float", "bfloat", "bool")):
        return TargetSize(shape, None)
    alike = shape == layout_of(sample)[1] or prod(shape) > _MOST_SLOTS
    return TargetSize(shape, _MOST_CODES // (1 if alike else max(prod(shape), 1)))


def samples_of(value: Value, batch_size: int) -> tuple[int, tuple[int, ...]]:
    """How many samples a head reads in a tensor of so large a batch, and the shape of one."""
    rows, sample = _samples(value.shape)
    return resolve((rows,), batch_size)[0], sample


@cache
def _one_head(
    rows: int,
    sample: tuple[int, ...],
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    seen: tuple[TargetSize, ...],
    one_in: int,
) -> HeadCost:
    """One head for `rows` samples of shape `sample`."""
    features, positions = layout_of(sample)
    code_width = width or features
    if width is None and hidden_layers == 0:
        code_width = _FULL_CODE_WIDTH
    informed = False
    part = Part(0, 0, 0.0)
    for size in seen:
        code, placed = _context(size, sample, code_width, rows, profile)
        part, informed = part + code, informed or placed
    if width is not None and not informed and prod(sample) <= MOST_FLAT:
        features, positions = prod(sample), ()
    count = rows * prod(positions)
    if width is None and hidden_layers == 0:
        part += linear(features, features, count, profile)
        # The map of the code is there even where no code comes.
        part += linear(_FULL_CODE_WIDTH, features, count if seen else 0, profile)
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
    adam = update_rule("Adam", {"fused": True})
    adam_us = update_us(adam, FLOAT_BYTES * part.parameters, part.tensors, profile)
    # Starting its operations takes as long for a part of a batch.
    train_us = (3 * part.forward_us + walks_us) / one_in + adam_us
    train_us += _LEARNING_LAUNCHES * profile.overhead_us
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


def per_position(target: TargetSize, sample: tuple[int, ...]) -> bool:
    """Whether every position of a crossing tensor has a target of its own."""
    _, positions = layout_of(sample)
    rank = len(positions)
    if not positions:
        return False
    if target.classes is not None:
        alike = target.shape == positions or prod(target.shape) > _MOST_SLOTS
        return len(target.shape) == rank and alike
    if len(target.shape) not in (rank, rank + 1):
        return False
    return channels_first(sample) or target.shape[:rank] == positions


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
    informed = per_position(target, sample)
    if target.classes is not None:
        slots = count if not informed and count <= _MOST_SLOTS else 1
        codes = rows * (prod(positions) if informed else 1)
        part = Part(slots * (target.classes + 1) * width, 1, 0.0)
        return part + element_wise(2, codes * width, profile), informed
    values = min(count, _MOST_VALUES)
    if informed:
        alone = len(target.shape) == rank
        values = 1 if alone else target.shape[0 if channels_first(sample) else -1]
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
