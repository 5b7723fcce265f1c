"""What an interface's gradients were like during an epoch, summed up where they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from dnic.runtime.supervision import explained

if TYPE_CHECKING:
    from dnic.runtime.predictor import PredictionStatistics


@dataclass
class SourceStatistics:
    """Sums over the steps of an epoch.

    `cosine`, `norm_ratio` and the squared errors of the prediction (`loss`) and of the gradient
    zero (`zero`) compare predicted with true gradients, averaged over an interface's tensors;
    `lateness` counts the stage's updates between computing an activation and taking its true
    gradient.
    """

    learned: int = 0
    cosine: float | Tensor = 0.0
    norm_ratio: float | Tensor = 0.0
    loss: float | Tensor = 0.0
    zero: float | Tensor = 0.0
    taken: int = 0
    lateness: int = 0
    lateness_max: int = 0

    def late(self, updates: int) -> None:
        """Counts a gradient that was taken so many updates after its activation."""
        self.taken += 1
        self.lateness += updates
        self.lateness_max = max(self.lateness_max, updates)

    def add(self, figures: PredictionStatistics) -> None:
        """Counts a batch that the heads have learnt from."""
        self.learned += 1
        self.cosine = self.cosine + figures.cosine
        self.norm_ratio = self.norm_ratio + figures.norm_ratio
        self.loss = self.loss + figures.loss
        self.zero = self.zero + figures.zero

    def summary(self) -> dict[str, float | None]:
        """Means; None where nothing was counted."""
        return {
            "cosine": float(self.cosine) / self.learned if self.learned else None,
            "norm_ratio": float(self.norm_ratio) / self.learned if self.learned else None,
            "explained": explained(float(self.loss), float(self.zero)) if self.learned else None,
            "lateness": self.lateness / self.taken if self.taken else None,
            "lateness_max": float(self.lateness_max) if self.taken else None,
        }
