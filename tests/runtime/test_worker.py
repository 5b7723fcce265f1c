"""Optimizers from the plan, dropout that can be switched off, layouts and slots of messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import load_bundle
from dnic.runtime.crossing import warmup_steps
from dnic.runtime.edges import pairs
from dnic.runtime.links import Layout, dtype_named
from dnic.runtime.optimizer import build_optimizer
from dnic.runtime.plan import TensorSpec
from dnic.runtime.worker import disable_dropout


def test_optimizer_by_name() -> None:
    optimizer = build_optimizer("SGD", {"lr": 0.5, "momentum": 0.9}, nn.Linear(2, 2))
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.9


def test_a_stage_without_parameters_gets_one_that_does_nothing() -> None:
    optimizer = build_optimizer("AdamW", {"lr": 0.5}, nn.ReLU())
    optimizer.step()
    optimizer.load_state_dict(optimizer.state_dict())


def test_parameters_of_other_stages_are_left_to_them() -> None:
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer("SGD", {"lr": 0.5}, layer, [layer.weight])
    assert optimizer.param_groups[0]["params"] == [layer.bias]


@pytest.mark.parametrize(
    ("name", "options", "problem"),
    [
        ("Adamw", {}, "no optimizer 'Adamw'"),
        ("lr_scheduler", {}, "no optimizer 'lr_scheduler'"),
        ("SGD", {"rate": 1}, "SGD refuses its options"),
        ("SGD", {"lr": -1.0}, "SGD refuses its options"),
    ],
)
def test_optimizers_that_torch_has_not(name: str, options: dict[str, float], problem: str) -> None:
    with pytest.raises(RuntimeFault, match=problem):
        build_optimizer(name, options, nn.Linear(2, 2))


def test_dropout_off() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), layer, nn.GRU(8, 8, 2, dropout=0.5))
    disable_dropout(model)
    x = torch.ones(3, 4, 8)
    assert torch.equal(model.train()(x)[0], model(x)[0])


def test_layout_is_aligned_and_exact() -> None:
    specs = (
        TensorSpec("a", ("B", 3), "float32", True),
        TensorSpec("b", ("B",), "bool", False),
        TensorSpec("c", ("2*B", 2), "int64", False),
        TensorSpec("d", (0,), "float64", False),
    )
    layout = Layout(specs, 5)
    buffer = torch.zeros(layout.nbytes, dtype=torch.uint8)
    views = layout.views(buffer)
    assert [list(view.shape) for view in views] == [[5, 3], [5], [10, 2], [0]]
    assert all((view.data_ptr() - buffer.data_ptr()) % 64 == 0 for view in views[:3])
    for number, view in enumerate(views):
        view.fill_(number)
    assert [set(view.flatten().tolist()) for view in views] == [{0.0}, {True}, {2}, set()]
    assert layout.nbytes == 64 + 64 + 192


def test_dtypes() -> None:
    assert dtype_named("bfloat16") is torch.bfloat16
    with pytest.raises(RuntimeFault, match="'Tensor' is not a dtype"):
        dtype_named("Tensor")


@pytest.mark.parametrize(
    ("planned", "gradient", "total", "expected"),
    [
        ("auto", "synthetic", 1000, 50),
        ("auto", "synthetic", 100_000, 200),
        ("auto", "stale", 1000, 50),
        ("auto", "none", 1000, 50),
        ("auto", "local", 1000, 0),
        ("auto", "synthetic", 10, 0),
        (7, "synthetic", 10, 7),
        (7, "local", 10, 7),
        (0, "synthetic", 10, 0),
    ],
)
def test_warmup(
    bundle: Callable[..., Path], planned: int | str, gradient: str, total: int, expected: int
) -> None:
    """A local loss begins without, unless asked for it."""
    plan = load_bundle(bundle("mlp2", gradient=gradient, warmup_steps=planned)).plan
    assert warmup_steps(plan.interfaces[0], total) == expected


def test_slots_of_edges(bundle: Callable[..., Path]) -> None:
    """One more than the window; an edge without gradients holds nobody more than its path."""
    plan = load_bundle(bundle("skip3", window=3)).plan
    assert [(p.source, p.to, p.slots) for p in pairs(plan, "decoupled")] == [
        (0, 1, 4),
        (0, 2, 4),
        (1, 2, 4),
    ]
    assert [p.slots for p in pairs(plan, "exact")] == [2, 2, 2]
