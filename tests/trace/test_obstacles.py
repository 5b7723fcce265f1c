"""What one recording cannot show: kept whole in a submodule, refused with the line at the root."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnic.errors import TraceError
from dnic.trace import capture_coarse, capture_fine

Written = Callable[..., nn.Module]
HERE = Path(__file__)


def kept_whole(run: Callable[..., Any], written: Written, *inputs: Tensor) -> dict[str, str]:
    """Modules kept whole where `run` is the forward of a submodule that holds a layer."""
    model = nn.Sequential(nn.Linear(4, 4), written(run, linear=nn.Linear(4, 4)))
    return capture_fine(model, inputs or (torch.ones(3, 4),)).whole


def refusal(run: Callable[..., Any], written: Written, *inputs: Tensor) -> TraceError:
    """The error where `run` is the model's own forward; its line is the one marked `# here`."""
    with pytest.raises(TraceError) as caught:
        capture_fine(written(run, linear=nn.Linear(4, 4)), inputs or (torch.ones(3, 4),))
    file, _, line = (caught.value.where or "").rpartition(":")
    assert Path(file) == HERE
    assert HERE.read_text().splitlines()[int(line) - 1].endswith("# here")
    return caught.value


def branch_in_try(m: Any, x: Tensor) -> Tensor:
    try:
        if x.sum() > 100:  # here
            return x
    except Exception:  # noqa: BLE001 (as users write it)
        pass
    return m.linear(x)


def branch_on_chance(m: Any, x: Tensor) -> Tensor:
    keep = torch.rand(1)
    return m.linear(x) if keep > -1 else x  # here


def branch_on_a_parameter(m: Any, x: Tensor) -> Tensor:
    return m.linear(x) if m.linear.bias.sum() < 1e6 else x  # here


def loop_over_values(m: Any, x: Tensor) -> Tensor:
    out = m.linear(x)
    for length in x.int().sum(1):
        out = out * int(length)  # here
    return out


def python_random(m: Any, x: Tensor) -> Tensor:
    if random.random() < 2:
        return m.linear(x)
    return x


def numpy_random(m: Any, x: Tensor) -> Tensor:
    return m.linear(x) * float(np.random.uniform())


def nonzero_rows(m: Any, x: Tensor) -> Tensor:
    rows = x.sum(1).nonzero().flatten()
    return m.linear(x) / len(rows)  # here


def masked_rows(m: Any, x: Tensor) -> Tensor:
    picked = m.linear(x)[x.sum(1) > 0]
    return m.linear(x) + picked.view(picked.shape[0], 4).mean()  # here


def where_rows(m: Any, x: Tensor) -> Tensor:
    (rows,) = torch.where(x[:, 0] > 0)
    return m.linear(x) * rows.size(0)  # here


def unique_values(m: Any, x: Tensor) -> Tensor:
    values = torch.unique(x)
    return m.linear(x) / values.numel()  # here


def cut_at_values(m: Any, x: Tensor) -> Tensor:
    picked = x.masked_select(x > 0)
    halves = (picked + 1).split(2)  # here
    return m.linear(x) + halves[0].sum()


def hook_on_a_tensor(m: Any, x: Tensor) -> Tensor:
    hidden = m.linear(x)
    hidden.register_hook(lambda gradient: gradient * 2)  # here
    return hidden


def vmapped(m: Any, x: Tensor) -> Tensor:
    return torch.vmap(lambda row: row * 2)(m.linear(x))  # here


def under_autocast(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return x @ m.linear.weight  # here


OBSTACLES = [
    (branch_in_try, "a branch on the value of a tensor"),
    (branch_on_chance, "a branch on the value of a tensor"),
    (branch_on_a_parameter, "a branch on the value of a tensor"),
    (loop_over_values, "a branch on the value of a tensor"),
    (nonzero_rows, "a size that follows from the values of a tensor"),
    (masked_rows, "a size that follows from the values of a tensor"),
    (where_rows, "a size that follows from the values of a tensor"),
    (unique_values, "a size that follows from the values of a tensor"),
    (cut_at_values, "a size that follows from the values of a tensor"),
    (hook_on_a_tensor, "a hook on a tensor"),
    (vmapped, "a call inside vmap or torch.func"),
    (under_autocast, "a call under autocast"),
]


@pytest.mark.parametrize(("run", "what"), OBSTACLES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_submodule_is_kept_whole_and_the_model_itself_refused(
    run: Callable[..., Any], what: str, written: Written
) -> None:
    (reason,) = kept_whole(run, written).values()
    assert reason.startswith(what)
    error = refusal(run, written)
    assert what in error.problem
    assert error.hint


@pytest.mark.parametrize(
    ("run", "what"), [(python_random, "Python's random"), (numpy_random, "NumPy's random")]
)
def test_randomness_from_outside_torch(
    run: Callable[..., Any], what: str, written: Written
) -> None:
    (reason,) = kept_whole(run, written).values()
    assert f"a use of {what}" in reason
    with pytest.raises(TraceError, match=f"a use of {what}") as caught:
        capture_fine(written(run, linear=nn.Linear(4, 4)), (torch.ones(3, 4),))
    first = run.__code__.co_firstlineno
    file, _, line = (caught.value.where or "").rpartition(":")
    assert Path(file) == HERE and first < int(line) < first + 4


def test_all_generators_are_put_back(written: Written) -> None:
    def draws(m: Any, x: Tensor) -> Tensor:
        return m.linear(x) * random.random() * np.random.uniform() + torch.rand(4)

    model = nn.Sequential(nn.Linear(4, 4), written(draws, linear=nn.Linear(4, 4)))
    random.seed(5)
    np.random.seed(5)
    torch.manual_seed(5)
    states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    assert list(capture_fine(model, (torch.ones(3, 4),)).whole) == ["1"]
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_the_randomness_of_torch_is_no_obstacle(written: Written) -> None:
    def noisy(m: Any, x: Tensor) -> Tensor:
        return m.linear(x) + torch.rand_like(x) + torch.randn(4)

    assert kept_whole(noisy, written) == {}


def test_an_iteration_over_a_tensor_is_written_down(written: Written) -> None:
    def heads(m: Any, x: Tensor) -> Tensor:
        a, b = m.linear(x).view(-1, 2, 2).transpose(0, 1)
        return torch.cat([a, b], 1)

    traced = capture_fine(written(heads, linear=nn.Linear(4, 4)), (torch.ones(3, 4),))
    assert traced.whole == {}
    names = [node.name for node in traced.graph.nodes]
    assert names[3:] == ["transpose", "unbind", "unbind_0", "unbind_1", "cat", "output"]


def test_an_iteration_over_the_samples_follows_the_batch(written: Written) -> None:
    def samples(m: Any, x: Tensor) -> Tensor:
        return torch.stack([row * 2 for row in m.linear(x)])

    (reason,) = kept_whole(samples, written).values()
    assert "one more sample" in reason


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: torch.zeros(3, 4).index_add(0, x.isnan().nonzero()[:, 0], x[:0]),
        lambda m, x: torch.zeros(9).scatter_add(0, x.isnan().nonzero()[:, 0], x[0]),
        lambda m, x: x.masked_fill(x > 0, 1.0).view(x.shape[0], 4),
        lambda m, x: torch.where(x > 0, x, -x).view(x.shape[0], 4),
    ],
)
def test_what_keeps_its_shape_is_no_obstacle(run: Callable[..., Any], written: Written) -> None:
    def read_size(m: Any, x: Tensor) -> Tensor:
        kept = run(m, x)
        return m.linear(x) * kept.shape[0]

    assert kept_whole(read_size, written) == {}


def test_a_tensor_of_unknown_size_has_no_shape_in_the_capture(written: Written) -> None:
    def select(m: Any, x: Tensor) -> Tensor:
        return m.linear(x)[x.sum(1) > 0].sum(0)

    traced = capture_fine(written(select, linear=nn.Linear(4, 4)), (torch.ones(3, 4),))
    assert "getitem" in {n.name for n in traced.graph.nodes}
    assert "getitem" not in traced.shapes and "linear" in traced.shapes


class Doubled(torch.autograd.Function):
    """Twice the input; three times the gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 3


def test_a_function_with_its_own_derivative_is_called_by_its_name(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Own(Doubled):
        pass

    importable = ModuleType("users_functions")
    monkeypatch.setattr(importable, "Own", Own, raising=False)
    monkeypatch.setitem(sys.modules, "users_functions", importable)
    Own.__module__, Own.__qualname__ = "users_functions", "Own"

    def run(m: Any, x: Tensor) -> Tensor:
        return Own.apply(m.linear(x))

    apply = torch.autograd.Function.__dict__["apply"]
    traced = capture_fine(written(run, linear=nn.Linear(4, 4)), (torch.ones(3, 4),))
    assert torch.autograd.Function.__dict__["apply"] is apply
    assert traced.whole == {}
    called = [n for n in traced.graph.nodes if n.op == "call_function"]
    assert [(n.name, n.target) for n in called] == [("own", Own.apply)]


def test_a_function_that_cannot_be_imported(written: Written) -> None:
    class Local(Doubled):
        pass

    def run(m: Any, x: Tensor) -> Tensor:
        return Local.apply(m.linear(x))  # here

    (reason,) = kept_whole(run, written).values()
    assert "Local, which cannot be imported" in reason
    assert "cannot be imported" in refusal(run, written).problem


MODEL = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        {check}
        return self.linear(x)
"""


def net(folder: Path, check: str) -> nn.Module:
    """A model whose forward begins with `check`, imported from a file."""
    file = folder / "net.py"
    file.write_text(MODEL.replace("{check}", check))
    names: dict[str, Any] = {"__name__": "net"}
    exec(compile(file.read_text(), str(file), "exec"), names)
    model: nn.Module = names["Net"]()
    return model


@pytest.mark.parametrize(
    "check",
    [
        "if x.max() > 10: raise ValueError('too large')",
        "assert torch.isfinite(x).all(), 'not finite'",
        "assert x.shape[0] > 0 and float(x.min()) > -10",
        "if not (x.sum() > 0): raise ValueError",
    ],
)
def test_a_check_that_only_raises_is_passed_and_noted(tmp_path: Path, check: str) -> None:
    traced = capture_fine(net(tmp_path, check), (torch.ones(3, 4),))
    assert traced.checks == (f"{tmp_path / 'net.py'}:12",)
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["linear"]


@pytest.mark.parametrize(
    "check",
    [
        "if x.max() > 10: x = x / 10",
        "y = x * 2 if x.max() < 10 else x; x = y",
        "while x.max() > 10: x = x / 2",
        "if x.max() > 10: raise ValueError\n        else: x = x + 1",
        "n = int(x.max())\n        assert n < 10",
    ],
)
def test_a_check_that_does_more_is_refused(tmp_path: Path, check: str) -> None:
    with pytest.raises(TraceError, match="a branch on the value of a tensor") as caught:
        capture_fine(net(tmp_path, check), (torch.ones(3, 4),))
    assert re.search(r"net\.py:\d+$", caught.value.where or "")


def test_a_check_that_fails_is_the_models_own_error(tmp_path: Path) -> None:
    model = net(tmp_path, "if x.max() > 10: raise ValueError('too large')")
    with pytest.raises(TraceError, match="ValueError: too large"):
        capture_fine(model, (torch.full((3, 4), 11.0),))


def test_a_check_inside_a_module_that_is_whole_is_in_the_stages(tmp_path: Path) -> None:
    inner = net(tmp_path, "if x.max() > 10: raise ValueError('too large')")
    inputs = (torch.ones(3, 4),)
    fine = capture_fine(nn.Sequential(inner, nn.Linear(4, 4)), inputs)
    assert len(fine.checks) == 1
    assert capture_coarse(fine, inputs, ()).checks == ()
    assert capture_coarse(fine, inputs, ("0",)).checks == fine.checks


def test_modules_alike_are_kept_whole_together(written: Written) -> None:
    class Gate(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x) if x.sum() > 0 else x

    def run(m: Any, x: Tensor) -> Tensor:
        # Only the first meets an example that reaches it.
        return m.trunk(m.gates[0](x)) + m.gates[2](x)

    model = written(run, gates=nn.ModuleList(Gate() for _ in range(3)), trunk=nn.Linear(4, 4))
    assert sorted(capture_fine(model, (torch.ones(3, 4),)).whole) == [
        "gates.0",
        "gates.1",
        "gates.2",
    ]


def test_a_module_inside_one_that_is_kept_whole_is_not_opened(written: Written) -> None:
    def outer(m: Any, x: Tensor) -> Tensor:
        return m.linear(x) if F.relu(x).sum() >= 0 else x

    model = nn.Sequential(written(outer, linear=nn.Linear(4, 4)), nn.Linear(4, 4))
    traced = capture_fine(model, (torch.ones(3, 4),))
    assert [n.target for n in traced.graph.nodes if n.op == "call_module"] == ["0", "1"]
