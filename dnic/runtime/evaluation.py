"""Loss and accuracy over a data set, counted batch by batch on the stage that has the output.

The figures stay on the device until the end. Accuracy is counted only where it means something:
integer targets whose shape is the output's without its class axis. It is the share of right
entries, so for sequences and maps every token and every pixel counts; negative targets (torch's
`ignore_index`) do not.

Where targets are tokens, it may be that the output at one token is meant for the next: language
models shift their labels inside their loss. Which it is shows in the loss itself: the cross
entropy that is (nearly) the loss tells how output and targets belong together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

# A loss may hold more than the cross entropy, such as a router's balance.
_NEAR = 0.05


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
    """Adds up loss and hits over the batches of an evaluation.

    Args:
        own: whether the loss is the model's own, of which nothing is known.
    """

    def __init__(self, *, own: bool = False) -> None:
        self._own = own
        self._loss: Tensor | float = 0.0
        self._samples = 0
        self._classes = True
        self._here = _Hits()
        self._next: _Hits | None = _Hits()  # None where the output is no sequence of scores

    def add(self, output: Any, target: Tensor, loss: Tensor) -> None:
        """Counts one batch; `loss` is the mean over its samples."""
        size = target.shape[0]
        self._loss = self._loss + loss.detach().double() * size
        self._samples += size
        scores = class_scores(output, target)
        if scores is None:
            self._classes = False
            return
        predicted = scores.argmax(-1)
        sequence = target.dim() == 2 and target.shape[1] > 1
        if not sequence or self._next is None:
            self._next = None
            self._here.add(predicted, target)
            return
        scores = scores.detach()
        if scores.dtype in (torch.bfloat16, torch.float16):
            scores = scores.float()  # a sum of many small exponentials
        certain = scores.logsumexp(-1)
        self._here.add(predicted, target, scores, certain)
        self._next.add(predicted[:, :-1], target[:, 1:], scores[:, :-1], certain[:, :-1])

    def result(self) -> Evaluation:
        """The figures; waits for the device."""
        loss = float(self._loss) / max(self._samples, 1)
        hits = self._aligned(float(self._loss)) if self._classes else None
        counted = int(hits.counted) if hits is not None else 0
        accuracy = int(hits.right) / counted if hits is not None and counted else None
        return Evaluation(loss, accuracy, self._samples)

    def _aligned(self, loss: float) -> _Hits | None:
        """The hits that mean something; None where that cannot be told."""
        if self._next is None:
            return self._here
        here, after = (abs(float(hits.loss) - loss) for hits in (self._here, self._next))
        if min(here, after) > _NEAR * abs(loss):
            return None if self._own else self._here
        return self._here if here <= after else self._next


@dataclass
class _Hits:
    """Right entries, entries that count, and their cross entropy times the samples."""

    right: Tensor | int = 0
    counted: Tensor | int = 0
    loss: Tensor | float = 0.0

    def add(
        self,
        predicted: Tensor,
        target: Tensor,
        scores: Tensor | None = None,
        certain: Tensor | None = None,
    ) -> None:
        valid = target >= 0
        self.right = self.right + ((predicted == target) & valid).sum()
        self.counted = self.counted + valid.sum()
        if scores is None or certain is None:
            return
        index = target.long().clamp(0, scores.shape[-1] - 1)
        surprise = certain - scores.gather(-1, index.unsqueeze(-1)).squeeze(-1)
        mean = (surprise * valid).double().sum() / valid.sum().clamp(min=1)
        self.loss = self.loss + mean * target.shape[0]


def class_scores(output: Any, target: Tensor) -> Tensor | None:
    """The scores of the classes, that axis last, in the shape of the target before it.

    None where targets are no classes. In the output the class axis is the last one, or axis 1
    (maps, where both fit the last one is taken). Of several tensors the one called `logits`
    counts, else the first one that fits.
    """
    if target.is_floating_point() or target.is_complex() or target.dtype == torch.bool:
        return None
    for scores in _tensors(output):
        if scores.dim() == target.dim() + 1 and scores.is_floating_point():
            if scores.shape[:-1] == target.shape and scores.shape[-1] > 1:
                return scores
            if scores.shape[:1] + scores.shape[2:] == target.shape and scores.shape[1] > 1:
                return scores.movedim(1, -1)
    return None


def _tensors(output: Any) -> list[Tensor]:
    if isinstance(output, Tensor):
        return [output]
    if is_dataclass(output) and not isinstance(output, Mapping):
        output = {field.name: getattr(output, field.name, None) for field in fields(output)}
    elif hasattr(output, "_asdict"):
        output = output._asdict()
    if isinstance(output, Mapping):
        output = [output["logits"]] if "logits" in output else list(output.values())
    if isinstance(output, (tuple, list)):
        return [part for part in output if isinstance(part, Tensor)]
    return []
