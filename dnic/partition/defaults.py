"""What `gradient: auto` takes to predict gradients: by what crosses, and how many stages there are.

Which source learns best is not known at compile time; what is known is what a study has shown for
interfaces of a kind. The first row of the table that applies decides, whose source the spec lets
`auto` take and can be built there; without one it is the first that the spec names. How late true
gradients come makes no difference to what is best of them; it does to late gradients themselves
(`dnic.partition.alternating`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from dnic.cost import TargetSize, needs_gradients, per_position, samples_of
from dnic.cost.head_parts import channels_first, layout_of
from dnic.graph.graph import Value
from dnic.partition.misfits import TAILS, source_misfit
from dnic.partition.plan import PlannedTarget
from dnic.partition.request import AWAITED, InterfaceChoice
from dnic.partition.targets import target_size

Kind = Literal["vector", "sequence", "map", "positions"]


@dataclass(frozen=True)
class Rule:
    """A row of the table.

    Attributes:
        kind: of the interface; `positions`: every position has a target of its own.
        source: what to take.
        stages: where there may be so many stages at least.
    """

    kind: Kind
    source: str
    stages: int = 0


TABLE = (
    Rule("vector", "local", stages=3),
    Rule("vector", "synthetic"),
    Rule("positions", "local"),
    # Without local losses; a head is far worse there.
    Rule("positions", "virtual"),
    Rule("map", "local"),
    # Not studied; by what it is read as, like a map.
    Rule("sequence", "local"),
)
# Hidden layers where a plan leaves them open. A head bends once, and so does a tail with only its
# own loss; one that is to match a gradient, or to score every position, is a linear map.
LAYERS = {"virtual": 0, "local": 1}
HEAD_LAYERS = 1
# Of a tail's hidden layers, as they were studied.
TAIL_WIDTH = 256


def kind_of(values: Sequence[Value], target: TargetSize | None) -> Kind:
    """What crosses an interface: as its first tensor that has positions is read."""
    for value in values:
        _, sample = samples_of(value, 1)
        if target is not None and per_position(target, sample):
            return "positions"
        if layout_of(sample)[1]:
            return "map" if channels_first(sample) else "sequence"
    return "vector"


def kind_at(values: Sequence[Value], target: PlannedTarget | None) -> Kind:
    """What crosses an interface, by what a plan says of targets."""
    return kind_of(values, target_size(target, values))


def source_of(
    choice: InterfaceChoice, values: Sequence[Value], target: PlannedTarget | None
) -> str:
    """What predicts the gradients of an interface whose stages do not wait for one another.

    Args:
        choice: what is asked for.
        values: the differentiable tensors that cross.
        target: what training targets look like.
    """
    if choice.gradient not in ("auto", *AWAITED):
        return choice.gradient
    predicted = [source for source in choice.sources if source not in AWAITED]
    kind = kind_at(values, target)
    for rule in TABLE:
        applies = rule.kind == kind and choice.stages >= rule.stages
        allowed = applies and rule.source in predicted
        if allowed and not source_misfit(rule.source, values, choice, target):
            return rule.source
    return predicted[0] if predicted else "synthetic"


def return_every(source: str, choice: InterfaceChoice) -> int:
    """Of how many batches one's true gradients come back; 0 where nothing needs them."""
    if source in AWAITED:
        return 1
    return choice.return_every if needs_gradients(source) else 0


def learns_every(source: str, choice: InterfaceChoice) -> int:
    """A head learns in one of so many steps: of the gradients that come back not from every one."""
    return (return_every(source, choice) or 1) * choice.train_every


def layers_of(
    choice: InterfaceChoice,
    source: str,
    values: Sequence[Value],
    target: PlannedTarget | None,
) -> int:
    """Hidden layers of a head or tail: as asked for, or its kind's.

    Args:
        choice: what is asked for.
        source: what predicts.
        values: the differentiable tensors that cross.
        target: what training targets look like.
    """
    if choice.hidden_layers != "auto":
        return choice.hidden_layers
    if source in TAILS and kind_at(values, target) == "positions":
        return 0
    return LAYERS.get(source, HEAD_LAYERS)
