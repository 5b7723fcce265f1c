"""Operations timed where they stand: it is the model's own training step, cut into pieces."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import dnic.cost.measured as measured_module
from dnic.cost.child import ChildFailed
from dnic.cost.clock import Clock
from dnic.cost.kept import KeptTimes
from dnic.cost.operation import Timing
from dnic.cost.standing import _Run, time_standing
from dnic.cost.survey import as_captured
from dnic.cost.walk import walk
from tests.cost.conftest import Captured, captured

Open = Callable[[], KeptTimes]
CLOCK = Clock(torch.device("cpu"))


class Branches(nn.Module):
    """A tensor used three times, a tuple taken apart, a weight used by itself, one that is tied."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.rand(6))

    def forward(self, x: Tensor) -> Tensor:
        h = self.linear(x)
        left, right = h.chunk(2, dim=1)
        both = torch.cat([right, left], dim=1) * self.scale
        with torch.no_grad():
            shift = h.mean()
        h = torch.relu_(h * 2) + both
        return nn.functional.linear(h - shift, self.linear.weight)


def pieces(net: Captured, monkeypatch: pytest.MonkeyPatch) -> dict[int, Tensor]:
    """Gradients of the weights from a step in pieces that starts at ones, by identity."""
    monkeypatch.setattr(torch, "randn_like", torch.ones_like)
    run = _Run(CLOCK)
    with as_captured(net.traced):
        output = walk(net.traced, net.inputs, net.traced.batch_size, run.forward)
        weights = [list(dict.fromkeys(done.weights)) for done in run.done]
        count = [bool(done.ends) for done in run.done]
        run.backward(output)
    found: dict[int, Tensor] = {}
    held = iter(run._held)
    for mine, has_ends in reversed(list(zip(weights, count, strict=True))):
        if not has_ends:
            continue
        for weight, gradient in zip(mine, next(held), strict=True):
            if gradient is not None:
                found[id(weight)] = found.get(id(weight), torch.zeros(())) + gradient
    return found


@pytest.mark.parametrize("which", ["blocks", "branches"])
def test_the_pieces_give_the_gradients_of_the_whole(
    which: str, blocks: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = blocks if which == "blocks" else captured(Branches(), torch.randn(5, 6))
    found = pieces(net, monkeypatch)
    with as_captured(net.traced):
        net.model(*net.inputs).sum().backward()
    for name, parameter in net.model.named_parameters():
        assert parameter.grad is not None
        assert torch.allclose(found[id(parameter)], parameter.grad, atol=1e-5), name


def test_every_operation_has_times(blocks: Captured) -> None:
    before = [t.clone() for t in (*blocks.model.parameters(), *blocks.model.buffers())]
    times = time_standing(blocks.traced, blocks.inputs, 8, CLOCK, budget_us=100.0)
    computing = [op.name for op in blocks.graph.operations if op.kind in ("module", "function")]
    assert list(times) == computing
    assert all(timing.forward_us > 0 for timing in times.values())
    after = (*blocks.model.parameters(), *blocks.model.buffers())
    assert all(map(torch.equal, before, after))


def test_times_in_place_replace_those_alone(
    blocks: Captured, kept: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []

    def standing(
        traced: object, inputs: object, count: int, clock: Clock, **options: object
    ) -> dict[str, Timing]:
        runs.append(count)
        names = [op.name for op in blocks.graph.operations if op.kind in ("module", "function")]
        return {name: Timing(count * 10.0, count * 20.0 + 8) for name in names}

    monkeypatch.setattr(measured_module, "time_standing", standing)
    monkeypatch.setattr(measured_module, "in_child", lambda work, *a, **k: work())
    monkeypatch.setattr(measured_module, "try_whole", lambda *args: None)
    costs = blocks.measured(kept=kept(), whole=True).costs(blocks.graph)
    assert runs == [8, 2]
    assert costs.forward_us[1:-1] == (80.0,) * 16
    assert costs.backward_us[1:-1] == (168.0,) * 16
    # A straight line from 2 samples to 8.
    assert costs.forward_fixed_us[1:-1] == (0.0,) * 16
    assert costs.backward_fixed_us[1:-1] == pytest.approx((8.0,) * 16)
    blocks.measured(kept=kept(), whole=True).costs(blocks.graph)
    assert runs == [8, 2], "kept"


def test_without_them_times_alone_hold(
    blocks: Captured, kept: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = blocks.measured(kept=kept()).costs(blocks.graph)

    def fail(*args: object, **kwargs: object) -> object:
        raise ChildFailed("no child today")

    monkeypatch.setattr(measured_module, "in_child", fail)
    monkeypatch.setattr(measured_module, "try_whole", lambda *args: None)
    costs = blocks.measured(kept=kept(), whole=True).costs(blocks.graph)
    assert costs.forward_us == alone.forward_us
