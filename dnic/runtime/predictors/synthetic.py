"""`synthetic`: a head for every tensor, trained on its true gradient.

Jaderberg et al. 2016, arXiv 1608.05343, section 2: a direct regressor, by default with the targets
as context (`dnic.runtime.heads`), and with whatever else the spec names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from dnic.runtime.guard import LEAST_AT_FIRST
from dnic.runtime.head_axis import batch_axis
from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.heads import HeadSpec, build_head
from dnic.runtime.links import dtype_named
from dnic.runtime.plan import HeadPlan, TensorSpec
from dnic.runtime.predictor import PredictionStatistics, Predictor
from dnic.runtime.registry import PredictorRequest, predictor_kind, register


@register("synthetic", needs_target=False)
class Synthetic(Predictor):
    """Heads, and their trainers.

    Args:
        request: what for.

    Raises:
        RuntimeFault: no head can be built for one of the tensors.
    """

    needs_target: ClassVar[bool] = False
    replicated: ClassVar[bool] = True

    @classmethod
    def least_at_first(cls, head: HeadPlan, tensors: Sequence[TensorSpec]) -> float:
        """A head that sees targets is like a tail: features that follow it come to agree with it.

        Without them it must explain a tenth: less is the gradients' mean, which does harm.
        """
        return 0.0 if head.context == "target" else LEAST_AT_FIRST

    def __init__(self, request: PredictorRequest) -> None:
        predictor_kind("synthetic").options_of(request.head)
        self._names = [spec.name for spec in request.tensors]
        self._axes = [batch_axis(spec.shape)[0] for spec in request.context]
        self._trainers = [
            _trainer(request, spec, request.seed_of(number))
            for number, spec in enumerate(request.tensors)
        ]

    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        """Each head's prediction; zero until it has learnt."""
        beside = self._beside()
        return [
            trainer.predict(tensor, target, microbatches, beside=beside)
            for trainer, tensor in zip(self._trainers, tensors, strict=True)
        ]

    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        """One step of every head; nothing without gradients."""
        if gradients is None:
            return None
        beside = self._beside()
        found = [
            trainer.learn(tensor, target, gradient, self.weight, beside)
            for trainer, tensor, gradient in zip(self._trainers, tensors, gradients, strict=True)
        ]
        columns = zip(*((f.cosine, f.norm_ratio, f.loss, f.zero) for f in found), strict=True)
        return PredictionStatistics(*(torch.stack(column).mean() for column in columns))

    def _beside(self) -> list[Tensor]:
        return [
            axis.to_front(tensor) for axis, tensor in zip(self._axes, self.context, strict=True)
        ]

    def state_dict(self) -> dict[str, Any]:
        """State of each head's trainer, by the name of its tensor."""
        return {
            name: trainer.state_dict()
            for name, trainer in zip(self._names, self._trainers, strict=True)
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; tensors without an entry start anew."""
        for name, trainer in zip(self._names, self._trainers, strict=True):
            if name in state:
                trainer.load_state_dict(state[name])

    def parameters(self) -> dict[str, Tensor]:
        """Parameters of the heads by `<tensor>.<name>`."""
        return {
            f"{tensor}.{name}": parameter
            for tensor, trainer in zip(self._names, self._trainers, strict=True)
            for name, parameter in trainer.head.named_parameters()
        }


def _trainer(request: PredictorRequest, tensor: TensorSpec, seed: int) -> HeadTrainer:
    plan, target = request.head, request.target
    axis, sample_shape = batch_axis(tensor.shape)
    head = build_head(
        sample_shape,
        dtype_named(tensor.dtype),
        HeadSpec(hidden_layers=plan.hidden_layers, width=plan.width, context=plan.context),
        target.classes if target else None,
        target.sample_shape if target else None,
        dtype_named(target.dtype) if target else None,
        seed=seed,
        beside=[(batch_axis(t.shape)[1], dtype_named(t.dtype)) for t in request.context],
    )
    made = head.to(request.device)
    return HeadTrainer(made, plan.lr, axis, replicas=request.replicas, one_in=plan.one_in)
