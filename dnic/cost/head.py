"""What a gradient head costs, and how wide it may be.

A head maps the features of a crossing tensor to a gradient of the same shape: with k hidden layers
of width r it is d->r (->r)* ->d, without hidden layers one linear map d->d or, with a width, its
two factors d->r->d. The class of the target enters as an embedding of width r (or d). Features are
the last axis of vectors and sequences and the channels (axis 1) of maps; every other element is a
position to which the same map applies. Its time comes from the same roofline as the model's. Only
time decides the width: how well a head of that width predicts is not known before training.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from dnic.cost.optimizer import update_rule, update_us
from dnic.cost.profile import DeviceProfile
from dnic.graph.graph import Value
from dnic.graph.shape import resolve

NARROWEST = 8
WIDEST = 256
SLACK_SHARE = 0.05
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class HeadCost:
    """Size and time of a head.

    Attributes:
        parameters: number of parameters.
        forward_us: predicting the gradient of one batch.
        train_us: learning from one batch: forward again, backward, Adam's step.
    """

    parameters: int
    forward_us: float
    train_us: float

    @property
    def total_us(self) -> float:
        """Microseconds that it adds to a step."""
        return self.forward_us + self.train_us

    def __add__(self, other: HeadCost) -> HeadCost:
        return HeadCost(
            self.parameters + other.parameters,
            self.forward_us + other.forward_us,
            self.train_us + other.train_us,
        )


def features_and_positions(value: Value, batch_size: int) -> tuple[int, int]:
    """Features of a tensor and the number of positions that share one map.

    `[B, d]` has d features at B positions, `[B, T, d]` d at B*T, `[B, C, H, W]` C at B*H*W. A
    tensor without a feature axis (`[B]`) has one feature.
    """
    sizes = resolve(value.shape, batch_size)
    features = 1
    if len(sizes) >= 2:
        features = sizes[1] if len(sizes) >= 4 else sizes[-1]
    elements = prod(sizes)
    return max(features, 1), max(elements // max(features, 1), 1)


def head_cost(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    classes: int | None = None,
) -> HeadCost:
    """What the heads of all `values` that cross one interface cost together.

    Args:
        values: the differentiable tensors; each has a head of its own.
        batch_size: samples in a batch.
        hidden_layers: 0 to 3.
        width: of the hidden layers; None is as wide as the tensor's features.
        profile: the device.
        classes: categories of the target that enter by an embedding; None without context.
    """
    cost = HeadCost(0, 0.0, 0.0)
    for value in values:
        features, positions = features_and_positions(value, batch_size)
        cost += _one_head(features, positions, hidden_layers, width, profile, classes)
    return cost


def choose_width(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    slack_us: float,
    profile: DeviceProfile,
    classes: int | None = None,
) -> int | None:
    """The widest head that fits a stage's slack: low-rank by default.

    A power of two from 8 to 256, at most the tensor's features: the widest whose time fits
    `slack_us`. What any head costs, however narrow (launching its operations), does not count
    against the slack, because narrowing it would not save that time. 8 where nothing fits.

    Args:
        values: the differentiable tensors that cross.
        batch_size: samples in a batch.
        hidden_layers: 0 to 3.
        slack_us: time that the head may take: see `stage_slack_us`.
        profile: the device.
        classes: categories of the target; None without context.

    Returns:
        The width; None, full width, for tensors of at most 8 features.
    """
    features = max(features_and_positions(value, batch_size)[0] for value in values)
    if features <= NARROWEST:
        return None
    unavoidable = profile.model_copy(update={"flops_per_s": 1e30, "bytes_per_s": 1e30})
    chosen = width = NARROWEST
    while width <= min(features, WIDEST):
        paid = head_cost(values, batch_size, hidden_layers, width, profile, classes).total_us
        fixed = head_cost(values, batch_size, hidden_layers, width, unavoidable, classes).total_us
        if paid - fixed > slack_us:
            break
        chosen = width
        width *= 2
    return chosen


def stage_slack_us(stage_us: float, slowest_us: float) -> float:
    """Time that heads may add to a stage: 5% of its own, or all that it idles if that is more."""
    return max(SLACK_SHARE * stage_us, slowest_us - stage_us)


def _layers(features: int, hidden_layers: int, width: int | None) -> list[tuple[int, int]]:
    """Inputs and outputs of each linear map, in order."""
    if hidden_layers == 0 and width is None:
        return [(features, features)]
    rank = features if width is None else width
    between = [(rank, rank)] * max(hidden_layers - 1, 0)
    return [(features, rank), *between, (rank, features)]


def _one_head(
    features: int,
    positions: int,
    hidden_layers: int,
    width: int | None,
    profile: DeviceProfile,
    classes: int | None,
) -> HeadCost:
    layers = _layers(features, hidden_layers, width)
    rank = features if width is None else width
    parameters = sum(a * b + b for a, b in layers)
    tensors = 2 * len(layers)
    forward_us = sum(
        profile.operation_us(2 * positions * a * b, _FLOAT_BYTES * (positions * (a + b) + a * b))
        for a, b in layers
    )
    hidden_bytes = _FLOAT_BYTES * positions * rank
    forward_us += hidden_layers * profile.operation_us(0, 2 * hidden_bytes)
    if classes is not None:
        # Looking the row up writes it, adding it reads two and writes one.
        forward_us += profile.operation_us(0, 2 * hidden_bytes)
        forward_us += profile.operation_us(0, 3 * hidden_bytes)
        parameters += classes * rank
        tensors += 1
    # Difference to the true gradient, its square, and the gradient of that.
    loss_us = 2 * profile.operation_us(0, 3 * _FLOAT_BYTES * positions * features)
    adam_us = update_us(update_rule("Adam"), _FLOAT_BYTES * parameters, tensors, profile)
    return HeadCost(parameters, forward_us, 3 * forward_us + loss_us + adam_us)
