"""A source of gradients of one's own: for each class the running mean of its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dnic.runtime.predictor import PredictionStatistics, Predictor
from dnic.runtime.registry import PredictorRequest, register
from dnic.runtime.replicas import Replicas


@register("class_mean", options={"momentum": 0.1})
class ClassMean(Predictor):
    """What samples of a class need on average; of the activation itself it sees nothing."""

    replicated: ClassVar[bool] = True

    def __init__(self, request: PredictorRequest) -> None:
        (tensor,), target = request.tensors, request.target
        assert target is not None and target.classes is not None
        self.momentum = request.head.options.get("momentum", 0.1)
        self.replicas = request.replicas or Replicas()
        self.mean = torch.zeros(target.classes, *tensor.resolve(1)[1:], device=request.device)

    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        """Gradients of the batch's mean loss: each sample has its part of it."""
        return [self.mean[target] / (len(target) * microbatches)]

    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        """Moves the means of the classes that a batch has."""
        assert gradients is not None  # this kind needs them
        # Of this replica's share first: its mean loss was multiplied by its weight.
        rows = torch.stack([gradients[0] / (self.weight or 1), torch.ones_like(gradients[0])])
        rows[1] /= len(target)
        found = torch.zeros(2, *self.mean.shape).index_add_(1, target, rows)
        average = self.replicas.weighed(self.weight)
        sums, share = found if average is None else average(found)
        seen = share > 0
        self.mean += self.momentum * seen * (sums / share.where(seen, 1) - self.mean)
        return None

    def state_dict(self) -> dict[str, Any]:
        """All that the next prediction depends on."""
        return {"mean": self.mean}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self.mean.copy_(state.get("mean", self.mean))

    def parameters(self) -> dict[str, Tensor]:
        """What is learnt."""
        return {"mean": self.mean}
