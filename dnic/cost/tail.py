"""What virtual and local gradients cost: a small end of a network instead of a regressor.

What is counted is the tail that a bundle runs (`dnic.runtime.tail`): where its tensors are read by
position, how they are joined and in what they end is asked of the runtime's own code, so that both
agree; a test compares the parameters. With F the time of a tail's forward pass on a batch,

    virtual  predict 2 F: forward, and backward to the activation;
             learn 6 F: the same with a graph of the backward pass, whose match with the true
             gradient is differentiated once more; Adam
    local    predict 3 F: forward, and backward to the activation and the tail's weights at once;
             learn: Adam alone, the gradients are there. From a part of a batch: 2 F, then 2 F of it

A full last layer costs features times classes. With sampled classes it costs as if there were only
those that are drawn; its weights still lie in memory, but only rows that were used are updated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Literal

from dnic.cost.head_parts import FLOAT_BYTES, HeadCost, Part, TargetSize, element_wise, linear
from dnic.cost.optimizer import update_rule, update_us
from dnic.cost.profile import DeviceProfile
from dnic.graph.graph import Value
from dnic.graph.shape import Shape

if TYPE_CHECKING:
    from dnic.runtime.head_layout import Layout
    from dnic.runtime.tail_aim import Aim
    from dnic.runtime.tail_reader import Reading

_PREDICT, _PREDICT_AND_LEARN, _LEARN = 2.0, 3.0, 2.0
_MATCH = 6.0
_LOSS_WALKS = 3
# Of the activation's size: scale, difference, products, as synthetic heads do.
_MATCH_WALKS = 8
# Starting operations beside those of the layers: measured on one CPU thread, beside a head's.
_PREDICT_LAUNCHES, _MATCH_LAUNCHES, _LEARN_LAUNCHES = 12, 80, 35
_OBSERVE_WALKS = 4
# Rows with gradients of their own are sorted and added up before they are updated.
_SPARSE_FACTOR = 4.0


@dataclass(frozen=True)
class TailChoice:
    """What a plan says about tails, beside layers and width.

    Attributes:
        targets, loss: as `dnic.runtime.tail_options` says.
        output: shape of the model's output, where it is one tensor. A tail that is to end in the
            model's loss is taken to end in the targets' classes or values where it is not known.
    """

    targets: Literal["auto", "full", "sampled"] = "auto"
    loss: Literal["auto", "model"] = "auto"
    output: Shape | None = None

    def sampled(self, target: TargetSize | None) -> bool:
        """Whether a tail for these targets scores a sample of the classes."""
        return self.loss == "auto" and target is not None and _aim(target, self).kind == "sampled"


def tail_cost(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    target: TargetSize | None,
    source: Literal["virtual", "local"],
    one_in: int = 1,
    choice: TailChoice = TailChoice(),  # frozen
) -> HeadCost:
    """The tail on all tensors of an interface.

    Args:
        values: the differentiable tensors that cross.
        batch_size: samples in a batch.
        hidden_layers: 0 to 3, each `width` wide.
        width: of the hidden layers; None is as wide as the features.
        profile: the device.
        target: one sample's targets; without them the tail is taken to end in one value.
        source: which of the two it is.
        one_in: it learns from one in so many samples of a batch.
        choice: what it is scored by.
    """
    from dnic.runtime.tail import aligned_readings
    from dnic.runtime.tail_reader import Reading

    aim = _aim(target or TargetSize((), None), choice)
    readings = [Reading(value.shape) for value in values]
    aligned = aligned_readings(readings, aim)
    narrow = hidden_layers > 0 or width is not None or len(readings) > 1
    positions = readings[aligned[0]].layout.count if aligned else 1
    read = [
        _reader(reading, index in aligned, batch_size, profile)
        for index, reading in enumerate(readings)
    ]
    part = sum((one for one, _ in read), Part(0, 0, 0.0))
    rank = width or read[aligned[0] if aligned else 0][1]
    rows = batch_size * positions
    for index, (_, features) in enumerate(read):
        if narrow:
            follows = batch_size if readings[index].follows else 1
            part += linear(features, rank, rows if index in aligned else follows, profile)
    for _ in range(hidden_layers - 1):
        part += linear(rank, rank, rows, profile)
    part += element_wise(hidden_layers, rows * rank, profile)
    features = rank if narrow else read[0][1]
    layout = readings[aligned[0]].layout if aligned else None
    last, sparse_us = _ending(features, aim, layout, batch_size, profile)
    part += last
    elements = sum(batch_size * prod(reading.sample_shape) for reading in readings)
    dense = part.parameters - (last.parameters if aim.kind == "sampled" else 0)
    adam = update_rule("Adam", {"fused": True})
    adam_us = update_us(adam, FLOAT_BYTES * dense, part.tensors, profile) + sparse_us
    adam_us += element_wise(_OBSERVE_WALKS, elements, profile).forward_us
    starting_us = _LEARN_LAUNCHES * profile.overhead_us
    predict_us = _PREDICT_LAUNCHES * profile.overhead_us
    if source == "virtual":
        walks_us = element_wise(_MATCH_WALKS, elements, profile).forward_us
        train_us = (_MATCH * part.forward_us + walks_us) / one_in + adam_us
        train_us += _MATCH_LAUNCHES * profile.overhead_us
        return HeadCost(part.parameters, _PREDICT * part.forward_us + predict_us, train_us)
    if one_in == 1:
        predict_us += _PREDICT_AND_LEARN * part.forward_us
        return HeadCost(part.parameters, predict_us, adam_us + starting_us)
    train_us = _LEARN * part.forward_us / one_in + adam_us + starting_us
    return HeadCost(part.parameters, _PREDICT * part.forward_us + predict_us, train_us)


def _aim(target: TargetSize, choice: TailChoice) -> Aim:
    from dnic.runtime.plan import TargetPlan
    from dnic.runtime.tail_aim import Aim
    from dnic.runtime.tail_options import TailOptions

    dtype = "float32" if target.classes is None else "int64"
    planned = TargetPlan(target.shape, dtype, target.classes)
    if choice.loss == "model" and not choice.output:
        return Aim.of(planned, TailOptions("full"), None)
    return Aim.of(planned, TailOptions(choice.targets, choice.loss), choice.output)


def _reader(
    reading: Reading, aligned: bool, batch_size: int, profile: DeviceProfile
) -> tuple[Part, int]:
    """Standardising a tensor and averaging its positions; and how many features come of it."""
    from dnic.runtime.head_coarse import CELLS_PER_AXIS
    from dnic.runtime.heads import MOST_FLAT

    layout, flat = reading.layout, prod(reading.sample_shape)
    rows = batch_size * reading.rows if reading.follows else 1
    part = element_wise(1, rows * flat, profile)
    if aligned:
        features = layout.features
    elif flat <= MOST_FLAT:
        features = flat
    else:
        features = layout.features * prod(min(size, CELLS_PER_AXIS) for size in layout.positions)
        part += element_wise(1, rows * flat, profile)
    if not reading.follows or (aligned and not layout.channels_first):
        part += Part(2 * features, 2, 0.0)
    return part, features


def _ending(
    features: int, aim: Aim, layout: Layout | None, batch_size: int, profile: DeviceProfile
) -> tuple[Part, float]:
    """The last layer and the loss; and the update of what has sparse gradients."""
    from dnic.runtime.head_context import Values
    from dnic.runtime.head_layout import Layout
    from dnic.runtime.tail_ending import model_outputs
    from dnic.runtime.tail_sampled import DRAWN

    rows = batch_size * (layout.count if layout is not None else 1)
    if aim.kind == "sampled":
        rows *= 1 if layout is not None else max(prod(aim.shape), 1)
        moved = FLOAT_BYTES * (rows * (2 * features + DRAWN) + DRAWN * features)
        scored_us = profile.operation_us(2 * rows * features * (DRAWN + 1), moved)
        part = Part(aim.classes * (features + 1), 1, scored_us)
        used = min(rows + DRAWN, aim.classes) * (features + 1)
        adam = update_rule("Adam", {"fused": True})
        sparse_us = _SPARSE_FACTOR * update_us(adam, FLOAT_BYTES * used, 1, profile)
        return part + element_wise(_LOSS_WALKS, rows * DRAWN, profile), sparse_us
    if aim.kind == "model":
        outputs = model_outputs(aim, layout)
    elif aim.kind == "values":
        outputs = Values(aim.shape, layout or Layout(features, (), False)).count
    else:
        outputs = aim.classes * (aim.slots if layout is None else 1)
    part = linear(features, outputs, rows, profile)
    return part + element_wise(_LOSS_WALKS, rows * outputs, profile), 0.0
