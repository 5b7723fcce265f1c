"""What is counted at an interface over the steps of an epoch."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class SourceStatistics:
    """Sums over the steps of an epoch.

    `cosine` and `norm_ratio` compare predicted with true gradients, averaged over an interface's
    tensors; `lateness` counts the stage's updates between computing an activation and taking its
    true gradient.
    """

    learned: int = 0
    cosine: float | Tensor = 0.0
    norm_ratio: float | Tensor = 0.0
    taken: int = 0
    lateness: int = 0
    lateness_max: int = 0

    def late(self, updates: int) -> None:
        """Counts a gradient that was taken so many updates after its activation."""
        self.taken += 1
        self.lateness += updates
        self.lateness_max = max(self.lateness_max, updates)

    def summary(self) -> dict[str, float | None]:
        """Means; None where nothing was counted."""
        return {
            "cosine": float(self.cosine) / self.learned if self.learned else None,
            "norm_ratio": float(self.norm_ratio) / self.learned if self.learned else None,
            "lateness": self.lateness / self.taken if self.taken else None,
            "lateness_max": float(self.lateness_max) if self.taken else None,
        }
