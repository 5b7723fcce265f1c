"""Loss and accuracy over batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from dnic.runtime.evaluation import Evaluation, Score, class_scores

CLASSES = torch.eye(4)[torch.tensor([2, 0, 3])]  # three samples, of classes 2, 0 and 3
TOKENS = torch.eye(4).view(2, 2, 4)


@dataclass
class Answer:
    hidden: Tensor
    logits: Tensor


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
        (Answer(TOKENS, CLASSES), torch.tensor([2, 0, 3]), [2, 0, 3]),
        ({"more": CLASSES, "logits": 2 * CLASSES.flip(1)}, torch.tensor([2, 0, 3]), [1, 3, 0]),
        ({"more": CLASSES, "logits": TOKENS}, torch.tensor([2, 0, 3]), None),
        ({"logits": None, "loss": torch.tensor(1.0)}, torch.tensor([2, 0, 3]), None),
        (CLASSES[:, :1], torch.tensor([2, 0, 3]), None),
        (CLASSES[:, :0], torch.tensor([2, 0, 3]), None),
        (CLASSES, torch.zeros(3, 0), None),
    ],
)
def test_predicted_classes(output: Any, target: Tensor, expected: Any) -> None:
    scores = class_scores(output, target)
    assert (None if scores is None else scores.argmax(-1).tolist()) == expected


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


def evaluated(shift: int, extra: float, *, own: bool, scale: float = 1.0) -> float | None:
    """Accuracy where the output at a token is meant for the token `shift` later."""
    generator = torch.Generator().manual_seed(1)
    score = Score(own=own)
    for size in (3, 2):
        target = torch.randint(5, (size, 8), generator=generator)
        target[0, 2] = -100
        logits = torch.randn(size, 8, 5, generator=generator)
        hint = F.one_hot(target.roll(-shift, 1).clamp(min=0), 5)
        logits = logits + 2 * hint * (torch.rand(size, 8, 1, generator=generator) > 0.4)
        known = logits[:, : 8 - shift].flatten(0, 1), target[:, shift:].flatten()
        loss = F.cross_entropy(*known)
        score.add({"loss": loss, "logits": logits}, target, scale * loss + extra)
    return score.result().test_accuracy


def test_accuracy_belongs_to_the_token_that_the_loss_speaks_of() -> None:
    here, after = evaluated(0, 0.0, own=True), evaluated(1, 0.0, own=True)
    assert here is not None
    assert after is not None
    assert min(here, after) > 0.4
    assert evaluated(0, 0.03, own=True) == here
    assert evaluated(1, 0.03, own=True) == after
    # A loss that is far from either: a user's own speaks of the tokens as they stand.
    assert evaluated(1, 3.0, own=True) is None
    assert evaluated(0, 3.0, own=False) == here
    assert evaluated(0, 0.0, own=False, scale=24.0) == here
    assert (evaluated(1, 3.0, own=False) or 0) < 0.4
