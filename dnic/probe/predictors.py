"""The predictors that are probed, by the name of their source.

Each sees all differentiable tensors of one cut, predicts before it learns, and learns from what it
is given, late or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from dnic.graph.graph import Value
from dnic.partition.predictability import NO_CONTEXT
from dnic.runtime.head_axis import batch_axis
from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.heads import HeadSpec, build_head
from dnic.runtime.links import dtype_named
from dnic.runtime.plan import HeadPlan, TargetPlan
from dnic.runtime.seeds import head_seed

STALE = "stale"
# `stale` predicts nothing: how much late gradients are off is measured on the parameters.
SOURCES = ("synthetic", NO_CONTEXT, STALE)


class Predictor(Protocol):
    """What is asked of a source of predicted gradients."""

    needs_gradients: bool

    def predict(
        self, tensors: list[Tensor], target: Tensor, microbatches: int = 1
    ) -> list[Tensor]:
        """Gradients of the batch's mean loss, of the tensors' shapes and dtypes."""
        ...

    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> object:
        """One step on a batch."""
        ...


@dataclass
class Heads:
    """A head for every tensor of a cut."""

    trainers: Sequence[HeadTrainer]
    needs_gradients: bool = True

    def predict(
        self, tensors: list[Tensor], target: Tensor, microbatches: int = 1
    ) -> list[Tensor]:
        """See `Predictor`."""
        return [
            trainer.predict(tensor, target, microbatches)
            for trainer, tensor in zip(self.trainers, tensors, strict=True)
        ]

    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> None:
        """See `Predictor`."""
        assert gradients is not None  # They are needed.
        for trainer, tensor, gradient in zip(self.trainers, tensors, gradients, strict=True):
            trainer.learn(tensor, target, gradient)


def build_predictor(
    source: str,
    values: Sequence[Value],
    head: HeadPlan,
    target: TargetPlan | None,
    seed: int,
    number: int,
) -> Predictor:
    """A predictor that has learnt nothing yet.

    Args:
        source: of `SOURCES`, but `stale`.
        values: the differentiable tensors of the cut.
        head: what heads are like.
        target: what targets are; None where nothing is known of them.
        seed: of the run.
        number: of the cut.

    Raises:
        RuntimeFault: there can be no such predictor here.
    """
    context = "none" if source == NO_CONTEXT else head.context
    spec = HeadSpec(hidden_layers=head.hidden_layers, width=head.width, context=context)
    trainers = []
    for place, value in enumerate(values):
        axis, sample_shape = batch_axis(value.shape)
        built = build_head(
            sample_shape,
            dtype_named(value.dtype),
            spec,
            target.classes if target else None,
            target.sample_shape if target else None,
            dtype_named(target.dtype) if target else None,
            seed=head_seed(seed, number, number + 1, place),
        )
        trainers.append(HeadTrainer(built, head.lr, axis, head.one_in))
    return Heads(trainers)
