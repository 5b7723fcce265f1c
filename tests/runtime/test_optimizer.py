"""Every class of `torch.optim` trains a stage, or is refused by an error that names it."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime.optimizer import build_optimizer, clear_gradients, first_step

CLASSES = sorted(
    name
    for name, member in vars(torch.optim).items()
    if inspect.isclass(member)
    and issubclass(member, torch.optim.Optimizer)
    and member is not torch.optim.Optimizer
)
REFUSED = {
    "LBFGS": "runs the model again within its step",
    "Muon": r"trains matrices only, and 0\.bias has the shape \[3\]",
    "SparseAdam": "cannot make a step with this model's gradients: SparseAdam does not support",
}


def one_step(name: str, model: nn.Module, inputs: torch.Tensor) -> None:
    optimizer = build_optimizer(name, {"lr": 0.01}, model)
    model(inputs).square().sum().backward()
    first_step(optimizer)


@pytest.mark.parametrize("name", CLASSES)
def test_every_class_trains_or_is_refused(name: str) -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    before = model[0].weight.detach().clone()
    if name in REFUSED:
        with pytest.raises(RuntimeFault, match=f"{name}.*{REFUSED[name]}"):
            one_step(name, model, torch.randn(5, 4))
    else:
        one_step(name, model, torch.randn(5, 4))
    assert torch.equal(model[0].weight, before) == (name in REFUSED)


@pytest.mark.parametrize("name", [name for name in CLASSES if name != "LBFGS"])
def test_a_stage_without_parameters_has_an_optimizer(name: str) -> None:
    first_step(build_optimizer(name, {"lr": 0.01}, nn.ReLU()))


def test_matrices_and_sparse_gradients_have_theirs() -> None:
    torch.manual_seed(1)
    matrix = nn.Linear(4, 3, bias=False)
    one_step("Muon", matrix, torch.randn(5, 4))
    one_step("SparseAdam", nn.Embedding(5, 3, sparse=True), torch.tensor([1, 3]))
    with pytest.raises(RuntimeFault, match=r"Adam cannot make a step.*sparse"):
        one_step("Adam", nn.Embedding(5, 3, sparse=True), torch.tensor([1, 3]))


def test_gradients_are_cleared_in_every_group() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = [{"params": first.parameters()}, {"params": second.parameters(), "lr": 0.1}]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    second(first(torch.ones(1, 2))).sum().backward()
    assert all(p.grad is not None for p in (*first.parameters(), *second.parameters()))
    clear_gradients(optimizer)
    assert all(p.grad is None for p in (*first.parameters(), *second.parameters()))


def test_too_little_memory_is_not_the_gradients_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer("AdamW", {}, layer)

    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(optimizer, "step", step)
    with pytest.raises(torch.OutOfMemoryError):
        first_step(optimizer)


@pytest.mark.processes
def test_a_run_ends_with_that_error(bundle: Callable[..., Path], run_ranks: Any) -> None:
    train = {
        "batch_size": 16,
        "epochs": 1,
        "seed": 3,
        "optimizer": {"name": "SparseAdam", "options": {"lr": 0.1}},
    }
    folder = bundle("mlp2", plan_keys={"train": train})
    assert run_ranks(folder, 1, "--mode=backprop", fails=True) == [2]
    failure = json.loads((folder / "runs/backprop/failure.json").read_text())
    assert "SparseAdam cannot make a step with this model's gradients" in failure["message"]
