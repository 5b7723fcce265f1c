"""The sources that are probed, and a predictor of each at a cut.

Every kind of `dnic.runtime.registry` can be probed, those of other packages and of the model file
too. `synthetic-no-context` is the `synthetic` one whose heads do not see the targets. `stale`
predicts nothing: how far late gradients are off is measured on the parameters
(`dnic.probe.staleness`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from dnic.cost import NARROWEST, head_features
from dnic.errors import RuntimeFault
from dnic.graph.graph import Value
from dnic.graph.shape import Shape
from dnic.partition.defaults import layers_of
from dnic.partition.heads import asked_width
from dnic.partition.plan import PlannedTarget
from dnic.partition.predictability import NO_CONTEXT
from dnic.partition.request import InterfaceChoice
from dnic.runtime.loss import Loss
from dnic.runtime.plan import HeadPlan, TargetPlan, TensorSpec
from dnic.runtime.predictor import Predictor
from dnic.runtime.registry import PredictorRequest, predictor_kind, predictor_names

SYNTHETIC = "synthetic"
STALE = "stale"
# Those that are probed when nothing else is asked; `none` is 0 everywhere.
SOURCES = (SYNTHETIC, NO_CONTEXT, "virtual", "local", STALE)
# Of a head whose width the plan chooses for its stage's slack, which is not known here.
WIDTH = 64


def known_sources() -> tuple[str, ...]:
    """The names of all sources that can be probed."""
    return tuple(dict.fromkeys([*SOURCES, *predictor_names()]))


def head_of(
    source: str,
    choice: InterfaceChoice,
    values: Sequence[Value],
    target: PlannedTarget | None,
) -> HeadPlan:
    """The head or tail of a source at a cut, as asked for; `auto` is a middling one.

    Args:
        source: of `known_sources`, but `stale`.
        choice: what is asked for there.
        values: the differentiable tensors of the cut.
        target: what training targets look like.
    """
    kind = _kind(source)
    layers = layers_of(choice, kind, values, target)
    width = asked_width(kind, choice, layers)
    if width == "auto":
        features = max(head_features(value) for value in values)
        width = None if features <= NARROWEST else min(WIDTH, features)
    return HeadPlan(
        hidden_layers=layers,
        width=width,
        context="none" if source == NO_CONTEXT else choice.context,
        lr=choice.lr,
        one_in=1 if choice.one_in == "auto" else choice.one_in,
        options=choice.options_of(kind),
    )


def head_words(head: HeadPlan) -> dict[str, Any]:
    """A head as `probe.json` has it."""
    return {
        "hidden_layers": head.hidden_layers,
        "width": head.width,
        "lr": head.lr,
        "one_in": head.one_in,
        **head.options,
    }


def build_predictor(
    source: str,
    values: Sequence[Value],
    head: HeadPlan,
    *,
    target: TargetPlan | None,
    loss: Loss | None,
    output: Shape | None,
    seed: int,
) -> Predictor:
    """A predictor that has learnt nothing yet.

    Args:
        source: of `known_sources`, but `stale`.
        values: the differentiable tensors of the cut.
        head: what `head_of` says.
        target: what targets are; None where nothing is known of them.
        loss: the model file's.
        output: shape of the model's output; None where it is no single tensor.
        seed: of its initial parameters.

    Raises:
        RuntimeFault: there can be no such predictor here.
    """
    kind = predictor_kind(_kind(source))
    sees = source == SYNTHETIC and head.context == "target"
    if target is None and (kind.needs_target or sees):
        raise RuntimeFault(f"{source} needs targets, and there are none that are tensors")
    request = PredictorRequest(
        tensors=tuple(TensorSpec(value.name, value.shape, value.dtype, True) for value in values),
        head=head,
        target=target,
        loss=loss,
        output=output,
        seed=seed,
    )
    return kind.build(request)


def _kind(source: str) -> str:
    return SYNTHETIC if source == NO_CONTEXT else source
