"""Measured costs: what is measured, how often, and that nothing of it stays behind.

No time is compared with another: how fast a machine is differs from run to run.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytest import approx
from torch import Tensor, nn
from torch.nn import functional

import dnic.cost.measured as measured_module
import dnic.cost.survey as survey_module
from dnic.cost import cost_model
from dnic.cost.child import ChildFailed, in_child, in_children
from dnic.cost.clock import Clock
from dnic.cost.kept import KeptTimes
from dnic.cost.operation import time_call
from dnic.cost.walk import Call, smaller, walk
from dnic.errors import DnicError
from dnic.trace import seeded, untouched
from tests.cost.conftest import PROFILE, Captured, captured

Open = Callable[[], KeptTimes]
CPU = torch.device("cpu")


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is forked, so that calls can be counted and side effects seen."""
    monkeypatch.setattr(measured_module, "can_fork", lambda: False)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the operations that are timed."""
    names: list[str] = []

    def count(call: Call, clock: Clock, budget_us: float) -> Any:
        names.append(call.node.name)
        return time_call(call, clock, budget_us)

    monkeypatch.setattr(survey_module, "time_call", count)
    return names


def test_a_walk_gives_what_the_model_gives(blocks: Captured) -> None:
    (x,) = blocks.inputs
    with seeded(), untouched(blocks.model):
        expected = blocks.model.train()(x)
    with seeded(), untouched(blocks.model):
        blocks.model.train()
        assert torch.equal(walk(blocks.traced, (x,), 8), expected)
    small = smaller((x,), 8, 3)
    with seeded(), untouched(blocks.model):
        expected = blocks.model.train()(*small)
    with seeded(), untouched(blocks.model):
        blocks.model.train()
        assert torch.equal(walk(blocks.traced, small, 3), expected)


class Folded(nn.Module):
    """Sizes that follow the batch, in a view and as a divisor."""

    def forward(self, x: Tensor) -> Tensor:
        flat = x.view(x.shape[0] * 2, 3)
        return (flat * (1 / x.shape[0])).reshape(x.shape[0], -1)


def test_sizes_follow_a_smaller_batch() -> None:
    net = captured(Folded(), torch.randn(4, 6))
    (x,) = net.inputs
    assert torch.equal(walk(net.traced, (x[:2],), 2), net.model(x[:2]))


@pytest.mark.usefixtures("here")
def test_equal_blocks_are_timed_once(blocks: Captured, kept: Open, timed: list[str]) -> None:
    costs = blocks.measured(kept=kept()).costs(blocks.graph)
    # Linear, BatchNorm, ReLU, Dropout, add and the head, at two batch sizes; the first block's
    # input needs no gradient, so its Linear and its add are other operations.
    assert len(timed) == 2 * (6 + 2)
    assert costs.kind == "measured"
    assert costs.unmeasured == ()
    by_name = dict(zip(costs.operations, costs.forward_us, strict=True))
    linears = [by_name[op.name] for op in blocks.graph.operations if op.module_class == "Linear"]
    assert linears[1] == linears[2] > 0
    first = len(timed)
    again = blocks.measured(kept=kept()).costs(blocks.graph)
    assert len(timed) == first, "everything was on disk"
    assert again == costs


@pytest.mark.usefixtures("here")
def test_what_is_free_stays_free(blocks: Captured, kept: Open) -> None:
    costs = blocks.measured(kept=kept()).costs(blocks.graph)
    assert costs.total_us[0] == costs.total_us[-1] == 0
    assert all(us > 0 for us in costs.forward_us[1:-1])
    fixed = zip(costs.forward_fixed_us, costs.forward_us, strict=True)
    assert all(0 <= part <= whole for part, whole in fixed)


def _state(model: nn.Module) -> list[Tensor]:
    return [t.detach().clone() for t in (*model.parameters(), *model.buffers())]


@pytest.mark.parametrize("forked", [True, False])
def test_the_model_and_chance_are_left_as_they_were(
    blocks: Captured, kept: Open, forked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not forked:
        monkeypatch.setattr(measured_module, "can_fork", lambda: False)
    blocks.model.eval()
    before, threads = _state(blocks.model), torch.get_num_threads()
    chance = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy())
    blocks.measured(kept=kept(), whole=forked, crowd=False).costs(blocks.graph)
    assert all(map(torch.equal, before, _state(blocks.model)))
    assert all(p.grad is None for p in blocks.model.parameters())
    assert not any(module.training for module in blocks.model.modules())
    assert torch.get_num_threads() == threads
    after = (torch.get_rng_state(), random.getstate(), np.random.get_state()[1])
    assert torch.equal(chance[0], after[0])
    assert chance[1] == after[1]
    assert np.array_equal(chance[2], after[2])


def test_whole_steps_are_what_the_operations_add_up_to(
    blocks: Captured, kept: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnic.cost.whole._FULL_BUDGET_US", 20_000.0)
    monkeypatch.setattr("dnic.cost.whole._SHARE_BUDGET_US", 10_000.0)
    model = blocks.measured(kept=kept(), whole=True, crowd=False)
    costs = model.costs(blocks.graph, "SGD", {"momentum": 0.9})
    # 8 samples: whole, half, a quarter; one alone cannot be normalised.
    assert [point.share for point in costs.curve] == [1.0, 0.5, 0.25]
    assert (costs.curve[0].forward, costs.curve[0].backward) == (approx(1), approx(1))
    assert sum(costs.update_us) > 0
    assert costs.crowding is None
    tried: list[object] = []
    monkeypatch.setattr(measured_module, "try_whole", lambda *args: tried.append(args))
    again = blocks.measured(kept=kept(), whole=True, crowd=False)
    # Blocks are the user's own code, but what was measured of them are operations of torch.
    assert again.costs(blocks.graph, "SGD", {"momentum": 0.9}) == costs
    assert tried == []
    again.costs(blocks.graph, "SGD", {"momentum": 0.5})
    assert len(tried) == 1, "another optimizer is another step"


def test_the_loss_is_counted_at_the_output(
    blocks: Captured, kept: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dnic.cost.whole._FULL_BUDGET_US", 20_000.0)
    monkeypatch.setattr("dnic.cost.whole._SHARE_BUDGET_US", 10_000.0)
    costs = blocks.measured(
        kept=kept(),
        whole=True,
        crowd=False,
        loss=functional.cross_entropy,
        target=torch.randint(4, (8,)),
    ).costs(blocks.graph)
    assert costs.forward_us[-1] > 0
    assert costs.backward_us[-1] > 0
    assert len(costs.curve) == 3, "targets are cut with the inputs"


def test_two_at_once(blocks: Captured, kept: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_FULL_BUDGET_US", "_SHARE_BUDGET_US"):
        monkeypatch.setattr(f"dnic.cost.whole.{name}", 10_000.0)
    monkeypatch.setattr("dnic.cost.whole._CROWD_S", 0.05)
    monkeypatch.setattr(measured_module, "cores", lambda: [None, None])
    costs = blocks.measured(kept=kept(), whole=True).costs(blocks.graph)
    assert costs.crowding is not None
    assert min(costs.crowding.forward, costs.crowding.backward, costs.crowding.update) >= 1


def test_a_model_that_does_not_train_keeps_the_sum_of_its_operations(
    blocks: Captured, kept: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(output: Tensor, target: Tensor) -> Tensor:
        raise ValueError("no loss today")

    costs = blocks.measured(kept=kept(), whole=True, loss=fail).costs(blocks.graph)
    assert (costs.curve, costs.crowding) == ((), None)
    assert costs.kind == "measured"


class Odd(nn.Module):
    """Something that only runs where it stands."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).relu()


@pytest.mark.usefixtures("here")
def test_what_does_not_run_alone_is_computed(kept: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(call: Call, clock: Clock, budget_us: float) -> Any:
        if call.node.op == "call_module":
            raise RuntimeError("not alone")
        return time_call(call, clock, budget_us)

    monkeypatch.setattr(survey_module, "time_call", refuse)
    net = captured(Odd(), torch.randn(8, 4))
    costs = net.measured(kept=kept()).costs(net.graph)
    assert costs.unmeasured == ("linear",)
    computed = cost_model(net.graph, PROFILE)
    position = costs.operations.index("linear")
    assert costs.forward_us[position] == computed.forward_us[position]
    assert costs.forward_us[position + 1] != computed.forward_us[position + 1]
    assert "not measured: linear" in str(costs)


@pytest.mark.usefixtures("here")
def test_weights_that_are_not_there(kept: Open) -> None:
    """Two blocks of 64 GB each would not fit; one operation of a modest size is given memory."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    net = captured(model, torch.empty(8, 64, device="meta"))
    costs = net.measured(kept=kept(), whole=True).costs(net.graph)
    assert all(us > 0 for us in costs.forward_us[1:-1])
    assert (costs.unmeasured, costs.curve) == ((), ())
    assert sum(costs.activation_bytes) == 4 * (8 * 64 * 2)
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.usefixtures("here")
def test_what_is_kept_for_backward_is_counted_once(kept: Open) -> None:
    """The input for the first product, the result of ReLU for itself and for the second."""
    net = captured(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(8, 6))
    costs = net.measured(kept=kept()).costs(net.graph)
    by_name = dict(zip(costs.operations, costs.activation_bytes, strict=True))
    assert list(by_name.values()) == [0, 4 * 8 * 6, 4 * 8 * 5, 0, 0]


@pytest.mark.usefixtures("here")
def test_shared_and_frozen_weights_have_no_update(kept: Open) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[0].requires_grad_(False)
    net = captured(model, torch.randn(4, 4))
    costs = net.measured(kept=kept()).costs(net.graph, "SGD")
    assert costs.update_us[1] == 0
    assert costs.update_us[2] > 0


def test_a_capture_of_other_inputs_is_refused(blocks: Captured, kept: Open) -> None:
    with pytest.raises(DnicError, match="linear cannot be run again: RuntimeError"):
        blocks.measured(kept=kept(), inputs=(torch.randn(8, 5),)).costs(blocks.graph)


def test_kept_times(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "times.json"
    times, other = KeptTimes(path=path), KeptTimes(path=path)
    times.put("a", [1.0, 2.0])
    times.put("mine", [3.0], lasting=False)
    assert times["mine"] == [3.0]
    times.save()
    other.put("b", [4.0])
    other.save()
    again = KeptTimes(path=path)
    assert (again["a"], again["b"]) == ([1.0, 2.0], [4.0])
    assert "mine" not in again


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"version": 0, "times": {"a": [1]}}',
        '{"version": 1, "times": []}',
        '{"version": 1, "times": {"a": [-1]}}',
        '{"version": 1, "times": {"a": "fast"}}',
        '{"version": 1, "times": {"a": [NaN]}}',
    ],
)
def test_kept_times_that_are_broken_are_as_good_as_none(tmp_path: Path, content: str) -> None:
    path = tmp_path / "times.json"
    path.write_text(content)
    times = KeptTimes(path=path)
    assert "a" not in times
    times.put("a", [1.0])
    times.save()
    assert KeptTimes(path=path)["a"] == [1.0]


def test_a_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    times = KeptTimes(path=tmp_path / "file" / "times.json")
    times.put("a", [1.0])
    times.save()
    assert times["a"] == [1.0]


def test_a_child_changes_nothing_here() -> None:
    model = nn.Linear(2, 2)
    before = copy.deepcopy(model.state_dict())

    def work() -> float:
        with torch.no_grad():
            model.weight.fill_(7)
        return float(model.weight.detach().sum())

    assert in_children(work, [None, None]) == [28, 28]
    assert torch.equal(model.weight, before["weight"])


def test_a_child_computes_with_one_thread() -> None:
    """More would wait for the parent's pool, which a fork does not copy."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        a = torch.ones(600, 600)
        expected = float((a @ a).sum())
        assert in_child(lambda: float((a @ a).sum()), timeout_s=30) == expected
    finally:
        torch.set_num_threads(before)


def test_a_child_that_fails() -> None:
    def raises() -> None:
        raise KeyError("lost")

    with pytest.raises(ChildFailed, match="KeyError: 'lost'"):
        in_child(raises)
    with pytest.raises(ChildFailed, match="it took too long"):
        in_child(lambda: threading_sleep(30), timeout_s=0.1)
    with pytest.raises(ChildFailed, match="it died"):
        in_child(lambda: exit_now(3))


def threading_sleep(seconds: float) -> None:
    import time

    time.sleep(seconds)


def exit_now(status: int) -> None:
    import os

    os._exit(status)


def test_a_clock_counts_what_is_between() -> None:
    clock = Clock(CPU)
    assert clock.between(100.0, 100.0) == 0
    assert clock.between(0.0, 50.0 + clock.cost_us) == pytest.approx(50)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu(kept: Open) -> None:
    net = captured(nn.Linear(4, 4).cuda(), torch.randn(8, 4, device="cuda"))
    costs = net.measured(kept=kept(), whole=True).costs(net.graph)
    assert costs.unmeasured == ()
