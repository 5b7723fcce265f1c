"""What an epoch's statistics of an interface are means of."""

from __future__ import annotations

import pytest
import torch

from dnic.runtime.predictor import PredictionStatistics
from dnic.runtime.source_statistics import SourceStatistics


def batch(cosine: float, ratio: float, loss: float, zero: float) -> PredictionStatistics:
    return PredictionStatistics(*(torch.tensor(value) for value in (cosine, ratio, loss, zero)))


def test_means_over_the_batches_and_the_explained_share_of_all() -> None:
    found = SourceStatistics()
    found.add(batch(0.5, 1.0, 1.0, 4.0))
    found.add(batch(0.7, 3.0, 2.0, 2.0))
    for late in (1, 4, 1):
        found.late(late)
    summary = found.summary()
    assert summary["cosine"] == pytest.approx(0.6)
    assert summary["norm_ratio"] == pytest.approx(2.0)
    assert summary["explained"] == pytest.approx(1 - 3 / 6)
    assert (summary["lateness"], summary["lateness_max"]) == (2.0, 4.0)


def test_nothing_counted_is_nothing_known() -> None:
    assert set(SourceStatistics().summary().values()) == {None}
