"""How large a head may be, and from how much of each batch it learns: what its stage has time for.

Only time decides here: how well a head predicts is not known before training. A narrow head and one
that learns from few samples at a time are cheap, and learn less in a step.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Literal

from dnic.cost.head import MOST_FLAT, head_cost, head_features, per_position, samples_of
from dnic.cost.head_parts import HeadCost, TargetSize, layout_of
from dnic.cost.profile import DeviceProfile
from dnic.graph.graph import Value

# Heads of rank 8 lost 7 points of accuracy to rank 16 on the digits without BatchNorm.
NARROWEST = 16
WIDEST = 256
SLACK_SHARE = 0.01
# Learning from fewer at a time: positions that share a map tell it much the same; where a sample
# has one target, it is samples that differ.
FEWEST_ROWS = 256
FEWEST_SAMPLES = 8


def fitting_head(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    width: int | Literal["auto"] | None,
    one_in: int | Literal["auto"],
    slack_us: float,
    profile: DeviceProfile,
    target: TargetSize | None = None,
    costing: Callable[..., HeadCost] | None = None,
    learns_every: int = 1,
) -> tuple[int | None, int]:
    """Width and `one_in` of a head, where they are `auto`: what fits a stage's slack.

    The cheapest head, the narrowest that learns from as few samples as may be, is the price of any.
    Half of the slack is for learning from more, what is left for width.

    Args:
        values: the differentiable tensors that cross, the batch on one axis.
        batch_size: samples in a batch.
        hidden_layers: 0 to 3.
        width: of the hidden layers; None is full width.
        one_in: it learns from one in so many samples of a batch.
        slack_us: time that it may take more than the cheapest.
        profile: the device.
        target: what the heads see of the targets; None without context.
        costing: what a head costs; None for `head_cost`.
        learns_every: it learns in one of so many steps; a mean step is what counts.
    """
    cost = costing or head_cost
    narrow = NARROWEST if width == "auto" else width
    given = values, batch_size, hidden_layers

    def time_us(one_in: int) -> float:
        return cost(*given, narrow, profile, target, one_in=one_in).step_us(learns_every)

    spent_us = 0.0
    if one_in == "auto":
        most = most_left_out(values, batch_size, target)
        cheapest_us = time_us(most) if most > 1 else 0.0
        one_in = 1
        while one_in < most and time_us(one_in) - cheapest_us > slack_us / 2:
            one_in *= 2
        spent_us = time_us(one_in) - cheapest_us if one_in < most else 0.0
    if width == "auto":
        left_us = slack_us - spent_us
        width = choose_width(*given, left_us, profile, target, costing, one_in, learns_every)
    return width, one_in


def choose_width(
    values: Sequence[Value],
    batch_size: int,
    hidden_layers: int,
    slack_us: float,
    profile: DeviceProfile,
    target: TargetSize | None = None,
    costing: Callable[..., HeadCost] | None = None,
    one_in: int = 1,
    learns_every: int = 1,
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
        one_in: it learns from one in so many samples of a batch.
        learns_every: it learns in one of so many steps; a mean step is what counts.

    Returns:
        The width; None, full width, for tensors of at most 16 features.
    """
    features = max(head_features(value) for value in values)
    if features <= NARROWEST:
        return None

    def time_us(width: int) -> float:
        cost = costing or head_cost
        head = values, batch_size, hidden_layers, width, profile, target
        return cost(*head, one_in=one_in).step_us(learns_every)

    chosen = width = NARROWEST
    while width <= min(features, WIDEST) and time_us(width) - time_us(NARROWEST) <= slack_us:
        chosen = width
        width *= 2
    return chosen


def most_left_out(
    values: Sequence[Value], batch_size: int, target: TargetSize | None = None
) -> int:
    """The largest `one_in` (a power of two) with which a head still learns from enough at a step.

    At least 256 rows of the map that positions share, and 8 samples where every position has not a
    target of its own.

    Args:
        values: the differentiable tensors that cross, the batch on one axis.
        batch_size: samples in a batch.
        target: what the heads see of the targets; None without context.
    """
    return min(_left_out(*samples_of(value, batch_size), target) for value in values)


def _left_out(samples: int, sample: tuple[int, ...], target: TargetSize | None) -> int:
    _, positions = layout_of(sample)
    informed = target is not None and per_position(target, sample)
    if not informed and prod(sample) <= MOST_FLAT:
        positions = ()
    rows, most = prod(positions), 1
    fewest = 1 if informed else FEWEST_SAMPLES
    while samples // (2 * most) >= fewest and samples * rows // (2 * most) >= FEWEST_ROWS:
        most *= 2
    return most


def stage_slack_us(stage_us: float, slowest_us: float) -> float:
    """Time that heads may add to a stage: 1% of its own, or all that it idles if that is more.

    Args:
        stage_us: time of the stage with the cheapest heads.
        slowest_us: time of the slowest stage.
    """
    return max(SLACK_SHARE * stage_us, slowest_us - stage_us)
