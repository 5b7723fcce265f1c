"""Loss and accuracy over a data set, counted batch by batch on the stage that has the output.

The figures stay on the device until the end. Accuracy is counted only where it means something:
integer targets whose shape is the output's without its class axis. It is the share of right
entries, so for sequences and maps every token and every pixel counts; negative targets (torch's
`ignore_index`) do not.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Evaluation:
    """Figures of one pass over `test_data()`.

    Attributes:
        test_loss: mean over the samples.
        test_accuracy: share of right predictions, 0 to 1; None where targets are no classes.
        samples: number of samples.
    """

    test_loss: float
    test_accuracy: float | None
    samples: int

    def to_json(self) -> dict[str, Any]:
        """For the board and the metrics."""
        return {
            "test_loss": self.test_loss,
            "test_accuracy": self.test_accuracy,
            "test_samples": self.samples,
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """The inverse of `to_json`."""
        return cls(content["test_loss"], content["test_accuracy"], content["test_samples"])


class Score:
    """Adds up loss and hits over the batches of an evaluation."""

    def __init__(self) -> None:
        self._loss: Tensor | float = 0.0
        self._hits: Tensor | int = 0
        self._counted: Tensor | int = 0
        self._classes = True
        self._samples = 0

    def add(self, output: Any, target: Tensor, loss: Tensor) -> None:
        """Counts one batch; `loss` is the mean over its samples."""
        size = target.shape[0]
        self._loss = self._loss + loss.detach().double() * size
        self._samples += size
        predicted = predictions(output, target)
        if predicted is None:
            self._classes = False
            return
        valid = target >= 0
        self._hits = self._hits + ((predicted == target) & valid).sum()
        self._counted = self._counted + valid.sum()

    def result(self) -> Evaluation:
        """The figures; waits for the device."""
        counted = int(self._counted)
        accuracy = int(self._hits) / counted if self._classes and counted else None
        return Evaluation(float(self._loss) / max(self._samples, 1), accuracy, self._samples)


def predictions(output: Any, target: Tensor) -> Tensor | None:
    """The predicted classes, in the shape of the target; None where targets are no classes.

    The class axis is the last one, or axis 1 (maps, where both fit the last one is taken). An
    output of several tensors counts by the first one that fits.
    """
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        return None
    for scores in _tensors(output):
        if scores.dim() == target.dim() + 1 and scores.is_floating_point():
            if scores.shape[:-1] == target.shape:
                return scores.argmax(-1)
            if scores.shape[:1] + scores.shape[2:] == target.shape:
                return scores.argmax(1)
    return None


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        return [part for part in output if isinstance(part, Tensor)]
    return []
