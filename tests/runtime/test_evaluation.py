"""Loss and accuracy over batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dnic.runtime.evaluation import Evaluation, Score, predictions

CLASSES = torch.eye(4)[torch.tensor([2, 0, 3])]  # three samples, of classes 2, 0 and 3
TOKENS = torch.eye(4).view(2, 2, 4)


@pytest.mark.parametrize(
    ("output", "target", "expected"),
    [
        (CLASSES, torch.tensor([2, 0, 3]), [2, 0, 3]),
        (TOKENS, torch.tensor([[0, 0], [0, 0]]), [[0, 1], [2, 3]]),
        (TOKENS.permute(0, 2, 1), torch.tensor([[0, 0], [0, 0]]), [[0, 1], [2, 3]]),
        ((CLASSES, TOKENS), torch.tensor([2, 0, 3]), [2, 0, 3]),
        ({"hidden": TOKENS, "logits": CLASSES}, torch.tensor([2, 0, 3]), [2, 0, 3]),
        (CLASSES, torch.tensor([2.0, 0.0, 3.0]), None),
        (CLASSES, torch.zeros(3, 4, dtype=torch.int64), None),
        (CLASSES > 0, torch.tensor([2, 0, 3]), None),
        ("nothing", torch.tensor([2, 0, 3]), None),
    ],
)
def test_predicted_classes(output: Any, target: Tensor, expected: Any) -> None:
    predicted = predictions(output, target)
    assert (None if predicted is None else predicted.tolist()) == expected


def test_means_are_over_samples_and_ignored_targets_do_not_count() -> None:
    score = Score()
    score.add(CLASSES, torch.tensor([2, 0, 3]), torch.tensor(1.0))
    score.add(CLASSES[:1], torch.tensor([-100]), torch.tensor(5.0))
    score.add(CLASSES[:1], torch.tensor([1]), torch.tensor(2.0))
    assert score.result() == Evaluation((3 * 1 + 5 + 2) / 5, 3 / 4, 5)


def test_no_accuracy_for_real_targets() -> None:
    score = Score()
    score.add(CLASSES, CLASSES, torch.tensor(1.0))
    result = score.result()
    assert result == Evaluation(1.0, None, 3)
    assert Evaluation.from_json(result.to_json()) == result
