"""What the pieces of a tail take: products, and walks through memory beside them.

The roofline's products alone are a third of what a tail takes, because so much of it is walks:
standardising an activation and going back through that, a softmax, and differentiating both once
more. How many, in walks that read and write a tensor once, was fitted to timings of 20 shapes on
one CPU thread (`docs/sources.md` says how near they come). Products with a narrow side do not reach
the peak either, and large vocabularies outgrow the caches. What GPUs do differs: nothing here was
fitted to one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log1p, prod
from typing import TYPE_CHECKING

from dnic.cost.head_parts import FLOAT_BYTES
from dnic.cost.profile import DeviceProfile

if TYPE_CHECKING:
    from dnic.runtime.head_layout import Layout
    from dnic.runtime.tail_aim import Aim
    from dnic.runtime.tail_reader import Reading

# Half of the peak is reached where the narrowest side of a product is so wide.
_HALF_PEAK = 16
# Walks through an activation: there and back in predicting; in learning a match, which goes through
# it a third time and compares gradients of its size.
_FLAT, _POOLED, _LAYER_NORM, _MAPS = (8.0, 41.0), (14.0, 58.0), (9.0, 85.0), (30.0, 110.0)
# More where positions lie before features, and have to change places to be averaged.
_TURNED = (8.0, 5.0)
# Of a softmax: through its outputs, and for each row as if there were so many more.
_SOFTMAX, _SOFTMAX_ROWS = (7.0, 45.0), (1000.0, 1600.0)
# Beyond this a CPU has them neither in its caches nor, from step to step, in its heap.
_SOFTMAX_LARGE, _LARGE_BYTES = (25.0, 80.0), 2**24
_SAMPLED = (42.0, 110.0)
_VALUES = (4.0, 20.0)
_BEND = (2.0, 12.0)
# Rows with gradients of their own are sorted and added up before they are updated.
_SPARSE_WALKS, _SPARSE_ROW_LAUNCHES = 45.0, 0.25


@dataclass(frozen=True)
class TailWork:
    """A piece of a tail.

    Attributes:
        parameters, tensors: of it, and in how many tensors.
        product_us: its matrix products on a batch, in one direction.
        predict_us: all else, forward and back to the activation.
        match_us: all else in learning to match a gradient.
        sparse: parameters that only rows in use are updated of, included above.
        unused: those of them that a batch does not use.
        sparse_us: updating the others.
    """

    parameters: int = 0
    tensors: int = 0
    product_us: float = 0.0
    predict_us: float = 0.0
    match_us: float = 0.0
    sparse: int = 0
    unused: int = 0
    sparse_us: float = 0.0

    def __add__(self, other: TailWork) -> TailWork:
        return TailWork(
            self.parameters + other.parameters,
            self.tensors + other.tensors,
            self.product_us + other.product_us,
            self.predict_us + other.predict_us,
            self.match_us + other.match_us,
            self.sparse + other.sparse,
            self.unused + other.unused,
            self.sparse_us + other.sparse_us,
        )


def walked_us(walks: float, elements: float, profile: DeviceProfile) -> float:
    """Microseconds of walks that each read and write so many elements, launches not included."""
    return walks * profile.busy_us(0, 2 * FLOAT_BYTES * elements)


def layer(
    inputs: int, outputs: int, rows: float, profile: DeviceProfile, *, bias: bool = True
) -> TailWork:
    """A linear layer."""
    parameters = inputs * outputs + (outputs if bias else 0)
    narrowest = min(inputs, outputs)
    moved = FLOAT_BYTES * (rows * (inputs + outputs) + parameters)
    reached = narrowest / (narrowest + _HALF_PEAK)
    product_us = profile.busy_us(2 * rows * inputs * outputs, moved, reached)
    return TailWork(parameters, 1 + bias, product_us)


def bend(rows: int, width: int, profile: DeviceProfile) -> TailWork:
    """The nonlinearity behind a layer, which standardises nothing."""
    return _walks(_BEND, rows * width, profile)


def reading_work(
    reading: Reading, aligned: bool, batch_size: int, profile: DeviceProfile
) -> tuple[TailWork, int]:
    """Standardising a tensor and averaging its positions; and how many features come of it.

    Args:
        reading: where its samples lie.
        aligned: whether every position is read by itself.
        batch_size: samples in a batch.
        profile: the device.
    """
    from dnic.runtime.head_coarse import CELLS_PER_AXIS
    from dnic.runtime.heads import MOST_FLAT

    layout, flat = reading.layout, prod(reading.sample_shape)
    elements = (batch_size * reading.rows if reading.follows else 1) * flat
    if aligned:
        features, walks = layout.features, _MAPS if layout.channels_first else _LAYER_NORM
    elif flat <= MOST_FLAT:
        features, walks = flat, _FLAT
    else:
        features = layout.features * prod(min(size, CELLS_PER_AXIS) for size in layout.positions)
        walks = _POOLED if layout.positions else _FLAT
        if layout.positions and not layout.channels_first:
            walks = _POOLED[0] + _TURNED[0], _POOLED[1] + _TURNED[1]
    work = _walks(walks, elements, profile)
    if not reading.follows or (aligned and not layout.channels_first):
        work += TailWork(2 * features, 2)
    return work, features


def observed_elements(reading: Reading, aligned: bool, batch_size: int) -> int:
    """Elements of a batch that running statistics are taken from; a `LayerNorm` has none."""
    from dnic.runtime.heads import MOST_OBSERVED

    if not reading.follows or (aligned and not reading.layout.channels_first):
        return 0
    flat = prod(reading.sample_shape)
    return min(batch_size * reading.rows, max(1, MOST_OBSERVED // flat)) * flat


def ending_work(
    features: int, aim: Aim, layout: Layout | None, batch_size: int, profile: DeviceProfile
) -> TailWork:
    """The last layer and the loss.

    Args:
        features: that it reads.
        aim: what it is scored against.
        layout: of the positions that have targets; None where samples have.
        batch_size: samples in a batch.
        profile: the device.
    """
    from dnic.runtime.head_context import Values
    from dnic.runtime.head_layout import Layout
    from dnic.runtime.tail_ending import model_outputs

    rows = batch_size * (layout.count if layout is not None else 1)
    if aim.kind in ("sampled", "clustered"):
        rows *= 1 if layout is not None else max(prod(aim.shape), 1)
        many = _sampled if aim.kind == "sampled" else _clustered
        return many(features, aim.classes, rows, profile)
    if aim.kind == "values":
        outputs = Values(aim.shape, layout or Layout(features, (), False)).count
        return layer(features, outputs, rows, profile) + _walks(_VALUES, rows * outputs, profile)
    if aim.kind == "model":
        outputs, softmaxes = model_outputs(aim, layout), 1
    else:
        softmaxes = aim.slots if layout is None else 1
        outputs = aim.classes * softmaxes
    loss = _softmax(rows * softmaxes, outputs // softmaxes, profile)
    return layer(features, outputs, rows, profile) + loss


def _sampled(features: int, classes: int, rows: int, profile: DeviceProfile) -> TailWork:
    from dnic.runtime.tail_sampled import DRAWN

    parameters, used = classes * (features + 1), min(rows + DRAWN, classes)
    sparse_us = walked_us(_SPARSE_WALKS, used * (features + 1), profile)
    sparse_us += _SPARSE_ROW_LAUNCHES * used * profile.overhead_us
    scored = layer(features, DRAWN + 1, rows, profile)
    unused = (classes - used) * (features + 1)
    own = TailWork(
        parameters,
        1,
        scored.product_us,
        sparse=parameters,
        unused=unused,
        sparse_us=sparse_us,
    )
    return own + _walks(_SAMPLED, rows * DRAWN, profile)


def _clustered(features: int, classes: int, rows: int, profile: DeviceProfile) -> TailWork:
    """Of classes that are as frequent as words are: as one over their rank (Zipf)."""
    from dnic.runtime.tail_clustered import cluster_ends, narrowing_of

    shortlist, *ends = cluster_ends(classes)
    narrowing = narrowing_of(features, len(ends))
    outputs = shortlist + len(ends)
    work = layer(features, outputs, rows, profile) + _softmax(rows, outputs, profile)
    begin = shortlist
    for number, end in enumerate(ends, start=1):
        there = rows * (log1p(end) - log1p(begin)) / log1p(classes)
        width = int(features // narrowing**number)
        work += layer(features, width, there, profile, bias=False)
        work += layer(width, end - begin, there, profile, bias=False)
        work += _softmax(there, end - begin, profile)
        begin = end
    return work


def _softmax(rows: float, outputs: int, profile: DeviceProfile) -> TailWork:
    # Profiles of CPUs name no memory of their own.
    large = profile.memory_bytes is None and FLOAT_BYTES * rows * outputs > _LARGE_BYTES
    walks = zip(_SOFTMAX_LARGE if large else _SOFTMAX, _SOFTMAX_ROWS, strict=True)
    predict_us, match_us = (walked_us(1, rows * (w * outputs + row), profile) for w, row in walks)
    return TailWork(predict_us=predict_us, match_us=match_us)


def _walks(walks: tuple[float, float], elements: float, profile: DeviceProfile) -> TailWork:
    predict_us, match_us = (walked_us(one, elements, profile) for one in walks)
    return TailWork(predict_us=predict_us, match_us=match_us)
