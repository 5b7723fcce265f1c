"""The second opinion on a capture: what it finds, what it cannot say, and what it leaves alone."""

from __future__ import annotations

import inspect
import logging
import random
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dnic.trace.crosscheck import cross_check


class Branching(nn.Module):
    """A linear layer, and something that Python does with its result."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.linear(x))


def plain(y: Tensor) -> Tensor:
    return y * 2 if y.shape[1] > 3 and y.dim() == 2 else y


def asks(y: Tensor) -> Tensor:
    if y.sum() > 0:
        return y * 2
    return y


def loops(y: Tensor) -> Tensor:
    while (y.abs() < 100).any():
        y = y * 2
    return y


def chooses(y: Tensor) -> Tensor:
    return y * 2 if not y.max() > 0 else y


def converts(y: Tensor) -> Tensor:
    return y * bool((y > 0).all())


def counts(y: Tensor) -> Tensor:
    for _ in range(int(y.abs().max().item())):
        y = y + 1
    return y


def compares(y: Tensor) -> Tensor:
    return y * 2 if torch.equal(y, y * 1) else y


def contains(y: Tensor) -> Tensor:
    return y * 2 if 3 in y else y


def masks(y: Tensor) -> Tensor:
    return torch.where(y > 0, y, y * 2)[:, y.shape[1] // 2 :]


def behind_a_type(y: Tensor) -> Tensor:
    if isinstance(y, Tensor) and y.max() > 1000:
        return y * 2
    return y


def decides_by_a_count(y: Tensor) -> Tensor:
    return y * 2 if y[y > 0].shape[0] > 2 else y


def iterates(y: Tensor) -> Tensor:
    for value in y[y > 0]:
        y = y + value
    return y


def splits(y: Tensor) -> Tensor:
    return y[y > 0].split(2)[0]


LINES = {
    decides_by_a_count: "return y * 2 if y[y > 0].shape[0] > 2 else y",
    iterates: "for value in y[y > 0]:",
    asks: "if y.sum() > 0:",
    loops: "while (y.abs() < 100).any():",
    chooses: "return y * 2 if not y.max() > 0 else y",
    converts: "return y * bool((y > 0).all())",
    counts: "for _ in range(int(y.abs().max().item())):",
    compares: "return y * 2 if torch.equal(y, y * 1) else y",
    contains: "return y * 2 if 3 in y else y",
    behind_a_type: "if isinstance(y, Tensor) and y.max() > 1000:",
}


@pytest.mark.parametrize(
    ("act", "line"), LINES.items(), ids=lambda value: getattr(value, "__name__", "")
)
def test_branches_on_data_are_named(
    act: Callable[[Tensor], Tensor], line: str, monkeypatch: pytest.MonkeyPatch, request: Any
) -> None:
    monkeypatch.syspath_prepend(request.path.parent)
    check = cross_check(Branching(act), (torch.randn(3, 4),))
    source, first = inspect.getsourcelines(act)
    number = first + next(i for i, text in enumerate(source) if text.strip() == line)
    assert check.agrees is False
    assert check.branches == (f"test_crosscheck.py:{number}: {line}",)
    assert f"test_crosscheck.py:{number}" in check.detail
    assert check.method == "torch.export"


@pytest.mark.parametrize("act", [plain, masks])
@pytest.mark.parametrize("batch", [1, 3])
def test_what_depends_on_shapes_is_no_branch(act: Callable[[Tensor], Tensor], batch: int) -> None:
    check = cross_check(Branching(act), (torch.randn(batch, 4),))
    assert check.agrees is True
    assert check.branches == ()
    assert "nodes, any batch size" in check.detail


def test_the_number_of_nodes_is_that_of_the_exported_graph() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    check = cross_check(model, (torch.randn(3, 4),))
    exported = torch.export.export(model, (torch.randn(3, 4),), strict=False)
    assert f": {len(exported.graph.nodes)} nodes" in check.detail


def test_a_torch_function_that_needs_a_size_is_no_branch_of_the_model() -> None:
    check = cross_check(Branching(splits), (torch.randn(3, 4),))
    assert check.method == "torch.fx"
    assert check.agrees is True
    assert "data-dependent" in check.detail


class FrozenBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.ones(3, 4)


def test_a_batch_size_that_is_frozen_is_said() -> None:
    check = cross_check(FrozenBatch(), (torch.randn(3, 4),))
    assert check.agrees is True
    assert check.detail.endswith("this batch size only")


class LayerDrop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if self.training and torch.rand([]) < 0.1:
                continue
            x = layer(x)
        return x


def test_layer_drop_is_seen_as_it_is_only_there_in_train_mode() -> None:
    check = cross_check(LayerDrop().eval(), (torch.randn(3, 4),))
    assert check.agrees is False
    assert check.branches[0].endswith("if self.training and torch.rand([]) < 0.1:")


class Opaque:
    """A result that pytrees do not know."""

    def __init__(self, value: Tensor) -> None:
        self.value = value


class Nested(nn.Module):
    def forward(
        self, pair: Any, *more: Tensor, mask: Tensor, scale: int = 1, **rest: Any
    ) -> dict[str, Any]:
        y = pair["first"][0] + more[0] * mask + rest["deep"]["value"]
        return {"y": y * scale, "cache": Opaque(y)}


def test_inputs_and_outputs_of_any_structure() -> None:
    def x() -> Tensor:
        return torch.randn(3, 2)

    deep = {"mask": x(), "scale": 2, "deep": {"value": x()}}
    check = cross_check(Nested(), ({"first": [x()]}, x()), deep)
    assert check.agrees is True, check.detail


class Numpy(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.asarray(x.detach().numpy() > 0)).float()


def test_what_neither_way_can_run_is_left_open() -> None:
    check = cross_check(Numpy(), (torch.randn(3, 4),))
    assert check.agrees is None
    assert check.branches == ()
    assert "\n" not in check.detail
    assert "numpy" in check.detail


class Refuses(torch.autograd.Function):
    """Fails on a tensor without data, as an extension in C++ does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x.data_ptr()
        raise ValueError("only real tensors\nsecond line")


@torch.fx.wrap
def opaque(x: Tensor) -> Tensor:
    return Refuses.apply(x)


class Extension(nn.Module):
    def forward(self, x: Tensor, twice: bool = False) -> Tensor:
        return opaque(x) * 2 if twice else opaque(x)


def test_fx_answers_where_export_cannot() -> None:
    check = cross_check(Extension(), (torch.randn(3, 4),), {"twice": True})
    assert check.agrees is True
    assert check.method == "torch.fx"
    assert "\n" not in check.detail


def test_inputs_without_a_batch_are_no_crash() -> None:
    assert cross_check(FrozenBatch()).agrees is None


class Leaves(nn.Module):
    """Everything that a forward can leave behind."""

    state: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("state", torch.zeros(4))
        self.seen: list[Tensor] = []
        self.table: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        print("forward")
        if not torch.is_grad_enabled():
            raise RuntimeError("in training, gradients are on")
        warnings.warn("deprecated", stacklevel=1)
        logging.getLogger("torch").error("logged")
        y = self.drop(self.norm(x)) * (random.random() + np.random.rand())
        self.state = y.mean(0)
        self.last = y
        self.seen.append(y)
        self.table["y"] = y
        if y.sum() > 1000:
            y = y * 2
        return y


def test_nothing_is_left_behind(capfd: pytest.CaptureFixture[str]) -> None:
    model = Leaves()
    model.norm.eval()
    x = torch.randn(3, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes, buffer, given = set(vars(model)), model.state, x.clone()
    torch_state, numpy_state, python_state = (
        torch.get_rng_state(),
        np.random.get_state()[1].copy(),
        random.getstate(),
    )
    with torch.no_grad():
        check = cross_check(model, (x,))
        assert not torch.is_grad_enabled()
    assert check.agrees is False
    assert {name: tensor.tolist() for name, tensor in model.state_dict().items()} == {
        name: tensor.tolist() for name, tensor in before.items()
    }
    assert set(vars(model)) == attributes
    assert model.state is buffer
    assert (model.seen, model.table) == ([], {})
    assert model.training and not model.norm.training
    assert torch.equal(x, given)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()
    assert random.getstate() == python_state
    assert logging.root.manager.disable == 0
    sys.stderr.flush()
    assert capfd.readouterr() == ("", "")


def test_as_json() -> None:
    check = cross_check(Branching(plain), (torch.randn(3, 4),))
    assert check.as_dict() == {
        "method": "torch.export",
        "agrees": True,
        "detail": check.detail,
        "branches": [],
    }
