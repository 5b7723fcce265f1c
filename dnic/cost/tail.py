"""What virtual and local gradients cost: a small end of a network instead of a regressor.

What is counted is the tail that a bundle runs (`dnic.runtime.tail`): where its tensors are read by
position, how they are joined and in what they end is asked of the runtime's own code, so that both
agree; a test compares the parameters. With P the time of a tail's matrix products on a batch, in
one direction,

    virtual  predict 2 P: forward, and backward to the activation;
             learn 6 P: the same with a graph of the backward pass, whose match with the true
             gradient is differentiated once more; Adam
    local    predict 3 P: forward, and backward to the activation and the tail's weights at once;
             learn: Adam alone, the gradients are there. From a part of a batch: 2 P, then 2 P of it

and as much again for walks through memory (`dnic.cost.tail_work`). A full last layer costs features
times classes. With sampled classes it costs as if there were only those that are drawn; its weights
still lie in memory, but only rows that were used are updated. Clustered, it costs what the clusters
cost in which targets lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from dnic.cost.head_parts import FLOAT_BYTES, HeadCost, TargetSize
from dnic.cost.optimizer import update_rule, update_us
from dnic.cost.profile import DeviceProfile
from dnic.cost.tail_work import (
    TailWork,
    bend,
    ending_work,
    layer,
    observed_elements,
    reading_work,
    walked_us,
)
from dnic.graph.graph import Value
from dnic.graph.shape import Shape

if TYPE_CHECKING:
    from dnic.runtime.tail_aim import Aim

_PREDICT, _PREDICT_AND_LEARN, _LEARN = 2.0, 3.0, 2.0
_MATCH = 6.0
# Starting operations: of a linear tail, and more for each hidden layer.
_PREDICT_LAUNCHES, _MATCH_LAUNCHES, _LEARN_LAUNCHES = (65, 25), (215, 105), (75, 30)
_OBSERVE_WALKS = 10


@dataclass(frozen=True)
class TailChoice:
    """What a plan says about tails, beside layers and width.

    Attributes:
        targets, loss: as `dnic.runtime.tail_options` says.
        output: shape of the model's output, where it is one tensor. A tail that is to end in the
            model's loss is taken to end in the targets' classes or values where it is not known.
    """

    targets: Literal["auto", "full", "sampled", "clustered"] = "auto"
    loss: Literal["auto", "model"] = "auto"
    output: Shape | None = None

    def sampled(self, target: TargetSize | None) -> bool:
        """Whether a tail for these targets scores a sample of the classes."""
        return self.loss == "auto" and target is not None and _aim(target, self).kind == "sampled"

    def misfit(self, classes: int | None) -> str:
        """Why targets of so many classes (None: real values) cannot be scored so; else empty."""
        from dnic.runtime.tail_aim import targets_misfit

        if self.loss == "auto":
            return targets_misfit(self.targets, classes)
        first = self.output[0] if self.output else None
        return "" if first == "B" else "the model's output is not one tensor with the batch first"


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
    work, observed = _work(values, batch_size, hidden_layers, width, profile, target, choice)
    predict, match, learn = (
        (base + more * hidden_layers) * profile.overhead_us
        for base, more in (_PREDICT_LAUNCHES, _MATCH_LAUNCHES, _LEARN_LAUNCHES)
    )
    adam = update_rule("Adam", {"fused": True})
    dense = FLOAT_BYTES * (work.parameters - work.sparse)
    adam_us = update_us(adam, dense, work.tensors, profile) + work.sparse_us
    predict_us = _PREDICT * work.product_us + work.predict_us + predict
    if source == "virtual":
        train_us = (_MATCH * work.product_us + work.match_us) / one_in + match + adam_us
        return HeadCost(work.parameters, predict_us, train_us, work.unused)
    adam_us += learn + walked_us(_OBSERVE_WALKS, observed, profile)
    if one_in == 1:
        predict_us += (_PREDICT_AND_LEARN - _PREDICT) * work.product_us
        return HeadCost(work.parameters, predict_us, adam_us, work.unused)
    train_us = (_LEARN * work.product_us + work.predict_us) / one_in + predict + adam_us
    return HeadCost(work.parameters, predict_us, train_us, work.unused)


def _work(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    target: TargetSize | None,
    choice: TailChoice,
) -> tuple[TailWork, int]:
    """All pieces together, and from how many elements running statistics are taken."""
    from dnic.runtime.tail import aligned_readings
    from dnic.runtime.tail_reader import Reading

    aim = _aim(target or TargetSize((), None), choice)
    readings = [Reading(value.shape) for value in values]
    aligned = aligned_readings(readings, aim)
    narrow = hidden_layers > 0 or width is not None or len(readings) > 1
    layout = readings[aligned[0]].layout if aligned else None
    read = [
        reading_work(reading, index in aligned, batch_size, profile)
        for index, reading in enumerate(readings)
    ]
    observed = sum(
        observed_elements(reading, index in aligned, batch_size)
        for index, reading in enumerate(readings)
    )
    work = sum((one for one, _ in read), TailWork())
    rank = width or read[aligned[0] if aligned else 0][1]
    rows = batch_size * (layout.count if layout is not None else 1)
    for index, (_, features) in enumerate(read):
        if narrow:
            follows = batch_size if readings[index].follows else 1
            work += layer(features, rank, rows if index in aligned else follows, profile)
    for number in range(hidden_layers):
        work += bend(rows, rank, profile)
        work += layer(rank, rank, rows, profile) if number else TailWork()
    work += ending_work(rank if narrow else read[0][1], aim, layout, batch_size, profile)
    return work, observed


def _aim(target: TargetSize, choice: TailChoice) -> Aim:
    from dnic.runtime.plan import TargetPlan
    from dnic.runtime.tail_aim import Aim
    from dnic.runtime.tail_options import TailOptions

    dtype = "float32" if target.classes is None else "int64"
    planned = TargetPlan(target.shape, dtype, target.classes)
    if choice.loss == "model" and not choice.output:
        return Aim.of(planned, TailOptions("full"), None)
    return Aim.of(planned, TailOptions(choice.targets, choice.loss), choice.output)
