"""The sources that are probed, and a predictor of each at a cut.

Every kind of `dnic.runtime.registry` can be probed, those of other packages and of the model file
too. `synthetic-no-context` is the `synthetic` one whose heads do not see the targets. `stale`
predicts nothing: how far late gradients are off is measured on the parameters
(`dnic.probe.staleness`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dnic.errors import RuntimeFault
from dnic.graph.graph import Value
from dnic.graph.shape import Shape
from dnic.partition.predictability import NO_CONTEXT
from dnic.runtime.loss import Loss
from dnic.runtime.plan import HeadPlan, TargetPlan, TensorSpec
from dnic.runtime.predictor import Predictor
from dnic.runtime.registry import PredictorRequest, predictor_kind, predictor_names

SYNTHETIC = "synthetic"
STALE = "stale"
# Those that are probed when nothing else is asked; `none` is 0 everywhere.
SOURCES = (SYNTHETIC, NO_CONTEXT, "virtual", "local", STALE)


def known_sources() -> tuple[str, ...]:
    """The names of all sources that can be probed."""
    return tuple(dict.fromkeys([*SOURCES, *predictor_names()]))


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
        head: what the spec says of it.
        target: what targets are; None where nothing is known of them.
        loss: the model file's.
        output: shape of the model's output; None where it is no single tensor.
        seed: of its initial parameters.

    Raises:
        RuntimeFault: there can be no such predictor here.
    """
    kind = predictor_kind(SYNTHETIC if source == NO_CONTEXT else source)
    blind = source == NO_CONTEXT
    if target is None and (kind.needs_target or (source == SYNTHETIC and head.context == "target")):
        raise RuntimeFault(f"{source} needs targets, and there are none that are tensors")
    request = PredictorRequest(
        tensors=tuple(TensorSpec(value.name, value.shape, value.dtype, True) for value in values),
        head=replace(head, context="none") if blind else head,
        target=target,
        loss=loss,
        output=output,
        seed=seed,
    )
    return kind.build(request)
