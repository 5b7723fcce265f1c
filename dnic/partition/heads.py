"""The head or tail of an interface: how wide it is, what it costs and what it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from dnic.cost import (
    DeviceProfile,
    HeadCost,
    fitting_head,
    head_cost,
    time_head,
)
from dnic.graph.graph import Value
from dnic.graph.shape import batch_multiple
from dnic.partition.alternating import LATE
from dnic.partition.defaults import TAIL_WIDTH, kind_at, layers_of, learns_every
from dnic.partition.misfits import TAILS
from dnic.partition.plan import PlannedHead, PlannedTarget
from dnic.partition.request import Auto, InterfaceChoice
from dnic.partition.targets import context_misfit, target_size

if TYPE_CHECKING:
    from dnic.partition.interfaces import Crossing


def seen_target(
    source: str, values: Sequence[Value], choice: InterfaceChoice, target: PlannedTarget | None
) -> tuple[str, str]:
    """The context of a head, and why it is less than was asked for."""
    if source in TAILS:
        return "target", ""
    misfit = context_misfit(target, values)
    return ("none", misfit) if misfit else (choice.context, "")


def head_costing(
    source: str, choice: InterfaceChoice, *, timed: bool, beside: Sequence[Value] = ()
) -> Callable[..., HeadCost]:
    """What a head of this source costs, by its shapes: computed, or built and timed."""
    costing = time_head if timed else head_cost
    return partial(costing, source=source, tail=choice.tail, beside=tuple(beside))


def asked_width(source: str, choice: InterfaceChoice, layers: int) -> int | Auto | None:
    """The width that is asked for: a tail has one of its own, or none as a linear map."""
    if choice.width == "auto" and source in TAILS:
        return TAIL_WIDTH if layers else None
    return choice.width


def deepened(
    crossings: Sequence[Crossing],
    choices: Sequence[InterfaceChoice],
    gradients: Sequence[str],
    target: PlannedTarget | None,
) -> list[InterfaceChoice]:
    """The choices, with a hidden layer in the tails of a chain of local losses where that is open.

    Of vectors and maps such tails have one anyway. Where every position has a target a linear one
    is better by itself and in turns with late gradients, and worse in a chain: 2.3, 2.8 and 10.6 %
    above backprop, with a hidden layer 3.2, 4.3 and 8.9 (`docs/learning.md`).
    """
    local = [gradient == "local" for gradient in gradients]
    if LATE in gradients or sum(local) < 2:
        return list(choices)
    found = []
    for crossing, choice, here in zip(crossings, choices, local, strict=True):
        values = crossing.differentiable
        left = here and values and choice.hidden_layers == "auto" and choice.width == "auto"
        if left and kind_at(values, target) == "positions":
            choice = replace(choice, hidden_layers=1)
        found.append(choice)
    return found


def plan_head(
    values: Sequence[Value],
    source: str,
    choice: InterfaceChoice,
    slack_us: float,
    profile: DeviceProfile,
    batch_size: int,
    target: PlannedTarget | None,
    *,
    timed: bool = False,
    beside: Sequence[Value] = (),
) -> tuple[PlannedHead | None, HeadCost, str]:
    """The head of an interface, what it costs, and a remark where it differs from what was asked.

    Args:
        values: the differentiable tensors that cross.
        source: what predicts.
        choice: what is asked for.
        slack_us: time that it may cost more than the cheapest one.
        profile: the device.
        batch_size: samples in a batch.
        target: what training targets look like; None without training data.
        timed: whether the head is built and timed on this machine.
        beside: further tensors that it sees.
    """
    if source == "none":
        return None, HeadCost(), ""
    context, misfit = seen_target(source, values, choice, target)
    following = [v for v in values if any(batch_multiple(size) for size in v.shape)]
    read = following if source in TAILS else values
    size = target_size(target, read) if context == "target" else None
    costing = head_costing(source, choice, timed=timed, beside=beside)
    layers = layers_of(choice, source, values, target)
    given = values, batch_size, layers
    wanted = asked_width(source, choice, layers), choice.one_in
    every = learns_every(source, choice)
    width, one_in = fitting_head(*given, *wanted, slack_us, profile, size, costing, every)
    cost = costing(*given, width, profile, size, one_in=one_in)
    options = dict(choice.options_of(source))
    if source in TAILS and choice.tail.sampled(size):
        options["targets"] = "sampled"
    head = PlannedHead.model_validate(
        {
            "hidden_layers": layers,
            "width": width,
            "context": context,
            "lr": choice.lr,
            "one_in": one_in,
            "train_every": choice.train_every,
            **options,
            "parameters": cost.parameters,
            "forward_us": cost.forward_us,
            "train_us": cost.train_us,
        }
    )
    lost = misfit and choice.context == "target"
    return head, cost, f"no target context: {misfit}; " if lost else ""
