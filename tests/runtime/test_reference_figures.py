"""What the reference tells between epochs and at the end: predictions as they were, no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from dnic.runtime.record import Record
from dnic.runtime.reference_parts import mean_figures

Make = Callable[..., Path]


def test_what_is_explained_is_what_is_left_of_the_true_gradient() -> None:
    learnt, expected = [], []
    for part in (0.0, 0.3, 1.0, 2.5):
        true = torch.randn(40)
        predicted = part * true + 0.2 * torch.randn(40)
        norms = predicted.norm(), true.norm()
        cosine = predicted.dot(true) / (norms[0] * norms[1])
        learnt.append(SimpleNamespace(cosine=cosine, norm_ratio=norms[0] / norms[1]))
        expected.append(1 - (predicted - true).square().sum() / true.square().sum())
    found = mean_figures(learnt)
    assert found["explained"] == pytest.approx(float(torch.stack(expected).mean()), abs=1e-5)
    assert found["cosine"] == pytest.approx(float(sum(row.cosine for row in learnt)) / 4)
    zero = SimpleNamespace(cosine=torch.zeros(()), norm_ratio=torch.zeros(()))
    assert mean_figures([zero])["explained"] == 0.0


def test_between_epochs_the_model_is_as_it_is(
    bundle: Make, reference: Callable[..., Any], same: Callable[[Record, Record], bool]
) -> None:
    """Whoever looks, and draws random numbers meanwhile, changes nothing."""
    folder = bundle("mlp3", warmup_steps=0)
    seen = []

    def look(epoch: int) -> None:
        torch.rand(3)
        found = watched.record()
        seen.append((epoch, len(found.losses), float(found.parameters["last.weight"].sum())))

    watched, plain = reference(folder), reference(folder)
    record = watched.run(3, after_epoch=look)
    assert same(record, plain.run(3))
    assert [epoch for epoch, _, _ in seen] == [1, 2, 3]
    each = len(record.losses) // 3
    assert [steps for _, steps, _ in seen] == [each, 2 * each, 3 * each]
    assert len({weight for _, _, weight in seen}) == 3
    first = reference(folder).run(3, max_steps=each).parameters["last.weight"]
    assert seen[0][2] == float(first.sum())


def test_predictions_are_those_of_interfaces_that_learn(
    bundle: Make, reference: Callable[..., Any]
) -> None:
    folder = bundle("mlp3", warmup_steps=0)
    decoupled, exact = reference(folder), reference(folder, mode="exact")
    decoupled.run(2)
    exact.run(2)
    assert exact.predictions() == {}
    found = decoupled.predictions()
    assert len(found) == 2
    for row in found.values():
        assert set(row) == {"cosine", "norm_ratio", "explained"}
        assert -1 <= row["cosine"] <= 1
        assert row["norm_ratio"] > 0
