"""The digits that scikit-learn ships, split once and for all."""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType

import torch

Load = Callable[[str], ModuleType]


def test_the_split_is_disjoint_and_complete(example: Load) -> None:
    module = example("digits")
    train, test = (
        {image.numpy().tobytes() for image, _ in data}
        for data in (module.train_data(), module.test_data())
    )
    assert (len(train), len(test)) == (1344, 453)
    assert train.isdisjoint(test)


def test_each_class_has_its_share_of_the_test_set(example: Load) -> None:
    module = example("digits")
    shares = [
        torch.bincount(data.tensors[1], minlength=10) / len(data)
        for data in (module.train_data(), module.test_data())
    ]
    assert torch.allclose(*shares, atol=0.003)
