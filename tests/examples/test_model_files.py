"""The convention that every example's model file follows, and that its model learns."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch
import yaml
from torch import Tensor

Load = Callable[[str], ModuleType]
NAMES = ("digits", "mnist", "charlm")


def batch(module: ModuleType, size: int) -> tuple[Tensor, Tensor]:
    inputs, targets = zip(*(module.train_data()[i] for i in range(size)), strict=True)
    return torch.stack(inputs), torch.stack(targets)


@pytest.mark.usefixtures("small_data")
@pytest.mark.parametrize("name", NAMES)
class TestEveryExample:
    def test_example_inputs_are_a_batch_of_the_training_data(
        self, example: Load, name: str
    ) -> None:
        module = example(name)
        (inputs,) = module.example_inputs()
        real, _ = batch(module, len(inputs))
        assert inputs.shape == real.shape
        assert inputs.dtype == real.dtype
        assert inputs.min() >= real.min().clamp(max=0)
        if inputs.is_floating_point():
            assert 0 <= real.min() < real.max() <= 1

    def test_loss_is_a_scalar_whose_gradient_reaches_every_parameter(
        self, example: Load, name: str
    ) -> None:
        module = example(name)
        model = module.build_model()
        inputs, targets = batch(module, 16)
        loss = module.loss(model(inputs), targets)
        assert loss.shape == ()
        loss.backward()
        for path, parameter in model.named_parameters():
            assert parameter.grad is not None, path
            assert parameter.grad.abs().sum() > 0, path

    def test_weights_follow_the_callers_seed(self, example: Load, name: str) -> None:
        module = example(name)
        weights = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            weights.append(torch.cat([p.flatten() for p in module.build_model().parameters()]))
        assert torch.equal(weights[0], weights[1])
        assert not torch.equal(weights[0], weights[2])

    def test_data_is_the_same_on_every_rank(self, example: Load, name: str) -> None:
        first, second = example(name), example(name)
        torch.manual_seed(1)
        ours = first.train_data().tensors + first.test_data().tensors
        torch.manual_seed(2)
        theirs = second.train_data().tensors + second.test_data().tensors
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))

    def test_it_learns(self, example: Load, name: str) -> None:
        module = example(name)
        model = module.build_model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        inputs, targets = batch(module, 32)
        losses = []
        for _ in range(8):
            losses.append(module.loss(model(inputs), targets))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        assert 0 < losses[-1] < 0.7 * losses[0]

    def test_its_spec_names_it_and_keeps_the_batch_size(
        self, example: Load, name: str, project: Path
    ) -> None:
        path = project / "specs" / f"{name}.yaml"
        spec = yaml.safe_load(path.read_text())
        file = (path.parent / spec["model"]["file"]).resolve()
        assert file == project / "examples" / name / "model.py"
        assert spec["train"]["batch_size"] == len(example(name).example_inputs()[0])
