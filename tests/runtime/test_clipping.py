"""Norms, limits and shares; what stages do with them is in `test_training_options`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch import distributed as dist

from dnic.runtime.bundle import load_bundle
from dnic.runtime.clipping import (
    Clipping,
    gradient_norm,
    joined_norm,
    parameter_share,
    planned_limits,
    scale_gradients,
)


def with_gradients(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2), nn.Linear(2, 2))
    for parameter in model[:2].parameters():
        parameter.grad = torch.randn_like(parameter) * scale
    return model


@pytest.mark.parametrize("limit", [0.5, 1e3])
def test_one_process_clips_as_torch_does(limit: float) -> None:
    ours, theirs = with_gradients(), with_gradients()
    Clipping(ours.parameters(), limit).clip()
    nn.utils.clip_grad_norm_(theirs.parameters(), limit)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None)
        assert one.grad is None or torch.equal(one.grad, other.grad)


def test_norms_of_stages_join_to_that_of_the_whole() -> None:
    whole, parts = with_gradients(), with_gradients()
    stages = [list(part.parameters()) for part in parts]
    norm = joined_norm([gradient_norm(stage) for stage in stages])
    for stage in stages:
        scale_gradients(stage, 0.3, norm)
    torch.testing.assert_close(norm, nn.utils.clip_grad_norm_(whole.parameters(), 0.3))
    for one, other in zip(parts.parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


def test_a_sparse_gradient_counts_each_row_once() -> None:
    grads = []
    for sparse in (False, True):
        torch.manual_seed(1)
        table = nn.Embedding(6, 3, sparse=sparse)
        table(torch.tensor([1, 4, 1])).square().sum().backward()
        Clipping(table.parameters(), 0.1).clip()
        assert table.weight.grad is not None
        grads.append(table.weight.grad.to_dense())
    torch.testing.assert_close(grads[0], grads[1])
    torch.testing.assert_close(grads[1].norm(), torch.tensor(0.1))


def test_shares_are_of_what_trains_and_a_tied_one_is_its_owners() -> None:
    first, last = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
    last.weight = first.weight
    frozen = nn.Linear(9, 9).requires_grad_(False)
    stages = [nn.Sequential(first, frozen), last, nn.ReLU()]
    shares = [parameter_share(stages, index) for index in range(3)]
    assert shares == [16 / 20, 4 / 20, 0.0]
    assert parameter_share([nn.ReLU()], 0) == 0.0


def test_whose_norm_is_limited(bundle: Callable[..., Path], load_module: Any) -> None:
    train = {"batch_size": 16, "epochs": 1, "clip_norm": 2.0, "optimizer": {"name": "SGD"}}
    folder = bundle("mlp2", plan_keys={"train": train})
    model = load_module(folder / "model.py").build_model()
    stages = [stage(model) for stage in load_module(folder / "stages.py").STAGES]
    plan = load_bundle(folder).plan
    sizes = [12 + 12 * 32 + 32 + 32 * 32 + 32, 32 * 32 + 32 + 32 * 5 + 5]
    own = [2.0 * (size / sum(sizes)) ** 0.5 for size in sizes]
    joint, each = planned_limits(plan, "decoupled", stages)
    assert joint is None
    assert each == pytest.approx(own)
    for mode in ("exact", "oracle", "gpipe", "1f1b"):
        assert planned_limits(plan, mode, stages) == (2.0, [None, None])
    exact = replace(plan, interfaces=(replace(plan.interfaces[0], gradient="exact"),))
    assert planned_limits(exact, "decoupled", stages) == (2.0, [None, None])
    # Alone, stages do not even make the same number of steps.
    assert planned_limits(exact, "alone", stages) == (None, pytest.approx(own))


def test_without_gradients_there_is_nothing_to_clip() -> None:
    Clipping(nn.ReLU().parameters(), 0.1).clip()
    Clipping(nn.Linear(2, 2).parameters(), 0.1).clip()


def test_every_process_sends_its_norm_from_where_the_others_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One without parameters would ask gloo and the others NCCL: all would wait."""
    sent: list[torch.device] = []

    def all_gather(norms: list[Tensor], own: Tensor, *, group: object) -> None:
        sent.extend(norm.device for norm in (*norms, own))

    monkeypatch.setattr(dist, "all_gather", all_gather)
    for module in (nn.ReLU(), nn.Linear(2, 2)):
        Clipping(module.parameters(), 1.0, 2, torch.device("meta")).clip()
    assert sent == [torch.device("meta")] * 6
