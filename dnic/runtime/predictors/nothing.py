"""`none`: no gradient crosses. The baseline that every other source must beat."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dnic.runtime.predictor import PredictionStatistics, Predictor
from dnic.runtime.registry import PredictorRequest, predictor_kind, register


@register("none")
class Nothing(Predictor):
    """Predicts zero, learns nothing, and needs nothing.

    What lies below the interface trains only where another path of the model reaches it.

    Args:
        request: what for.
    """

    needs_gradients: ClassVar[bool] = False
    needs_target: ClassVar[bool] = False
    replicated: ClassVar[bool] = True

    def __init__(self, request: PredictorRequest) -> None:
        predictor_kind("none").options_of(request.head)

    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        """Zeros."""
        return [torch.zeros_like(tensor) for tensor in tensors]

    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        """Nothing; there is no direction to compare."""
        return None

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Nothing to restore."""

    def parameters(self) -> dict[str, Tensor]:
        """Empty."""
        return {}
