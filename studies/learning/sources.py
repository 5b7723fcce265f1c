"""The gradient sources of the study, as the keys of `plan.yaml` that a user would edit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

LINEAR = {"hidden_layers": 0, "width": None, "context": "target", "lr": 1e-3, "one_in": 1}
HIDDEN = {**LINEAR, "hidden_layers": 1, "width": "hidden"}
HIDDEN_TAIL = {**LINEAR, "hidden_layers": 1, "width": "tail"}


@dataclass(frozen=True)
class Source:
    """A source of gradients, and how the study has it.

    Attributes:
        title: in tables.
        gradient: of `plan.yaml`.
        head: of `plan.yaml`; a width of `hidden` or `tail` is the model's (`bundles`).
        interface: further keys of an interface.
        lateness_matters: whether it learns from, or goes on with, gradients that come late.
        returns: whether true gradients are needed at all.
        turns: another source, which every second interface has: the last but one, and so on.
    """

    title: str
    gradient: str
    head: Mapping[str, Any] = field(default_factory=dict)
    interface: Mapping[str, Any] = field(default_factory=dict)
    lateness_matters: bool = True
    returns: bool = True
    turns: str = ""


SOURCES: Mapping[str, Source] = {
    "exact": Source("backprop", "exact", lateness_matters=False),
    "none": Source("no gradient", "none", LINEAR, lateness_matters=False, returns=False),
    "dni": Source("DNI, linear", "synthetic", {**LINEAR, "context": "none"}),
    "dni-hidden": Source("DNI, hidden layer", "synthetic", {**HIDDEN, "context": "none"}),
    "cdni": Source("cDNI, linear", "synthetic", LINEAR),
    "cdni-hidden": Source("cDNI, hidden layer", "synthetic", HIDDEN),
    "virtual": Source("virtual tail, matched", "virtual", {**LINEAR, "task": 0.0}),
    "virtual-task": Source("virtual tail, matched + task", "virtual", {**LINEAR, "task": 1.0}),
    "virtual-task-hidden": Source(
        "virtual tail, hidden layer, matched + task", "virtual", {**HIDDEN_TAIL, "task": 1.0}
    ),
    "local": Source("local loss", "local", LINEAR, lateness_matters=False, returns=False),
    "local-hidden": Source(
        "local loss, hidden layer", "local", HIDDEN_TAIL, lateness_matters=False, returns=False
    ),
    "stale": Source("stale", "stale"),
    "stale-weights": Source(
        "stale, weights predicted", "stale", interface={"predict_weights": True}
    ),
    "begun": Source(
        "local loss, then stale, weights predicted",
        "stale",
        LINEAR,
        interface={"predict_weights": True, "warmup": "local"},
    ),
    "turns": Source(
        "stale, weights predicted, in turns with a local loss",
        "stale",
        interface={"predict_weights": True},
        turns="local",
    ),
    "turns-hidden": Source(
        "stale, weights predicted, in turns with a local loss, hidden layer",
        "stale",
        interface={"predict_weights": True},
        turns="local-hidden",
    ),
}
# Those that live on late gradients.
LATE = ("stale", "stale-weights", "begun", "turns", "turns-hidden")


def source_at(name: str, cuts_after: int) -> str:
    """What an interface has where a run has a source.

    Args:
        name: of the run's source.
        cuts_after: how many cuts lie behind the interface.
    """
    turns = SOURCES[name].turns
    return turns if turns and cuts_after % 2 else name


# Those that wait for nothing, in the order of the tables.
DECOUPLED = tuple(name for name in SOURCES if name != "exact")
