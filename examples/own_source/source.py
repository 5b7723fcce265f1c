"""A source of gradients of one's own: for each class the running mean of its gradients."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dnic.runtime.predictor import PredictionStatistics, Predictor
from dnic.runtime.registry import PredictorRequest, register


@register("class_mean", options={"momentum": 0.1})
class ClassMean(Predictor):
    """What samples of a class need on average; of the activation itself it sees nothing."""

    def __init__(self, request: PredictorRequest) -> None:
        (tensor,), target = request.tensors, request.target
        assert target is not None and target.classes is not None
        self.momentum = request.head.options.get("momentum", 0.1)
        self.mean = torch.zeros(target.classes, *tensor.resolve(1)[1:], device=request.device)

    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        """Gradients of the batch's mean loss: each sample has its part of it."""
        return [self.mean[target] / (len(target) * microbatches)]

    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        """Moves the means of the classes that a batch has."""
        assert gradients is not None  # this kind needs them
        sums = torch.zeros_like(self.mean).index_add_(0, target, gradients[0] * len(target))
        count = torch.zeros_like(self.mean).index_add_(0, target, torch.ones_like(gradients[0]))
        self.mean += self.momentum * (count > 0) * (sums / count.clamp(min=1) - self.mean)
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
