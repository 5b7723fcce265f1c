"""What crosses a probed cut and what comes back, beside the same model divided by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dnic.graph.build import build_graph
from dnic.probe.asked import Asked
from dnic.probe.boundaries import Boundaries, Pass, gradients_before
from dnic.probe.candidates import candidates
from dnic.trace import capture_fine


class Skip(nn.Module):
    """`h` crosses a cut after `first` twice: as it is, and as what `first` made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.first = nn.Linear(8, 8)
        self.same = nn.Identity()
        self.act = nn.ReLU(inplace=True)
        self.second = nn.Linear(8, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        return self.head(self.same(h) + self.second(self.act(self.first(h))))


@pytest.fixture
def model() -> Skip:
    torch.manual_seed(0)
    return Skip()


def passed(model: Skip, inputs: Tensor, *cuts: str) -> tuple[Pass, Boundaries]:
    fine = capture_fine(model, (inputs,))
    graph = build_graph(fine)
    chosen, _ = candidates(graph, Asked(cuts=cuts))
    boundaries = Boundaries(fine, graph, chosen)
    return boundaries.forward((inputs,), inputs.shape[0]), boundaries


def test_the_gradient_is_of_the_part_behind_the_cut(model: Skip) -> None:
    x = torch.randn(6, 4)
    made, _ = passed(model, x, "first")
    made.backward(made.output.square().mean())
    (crossed,) = made.crossed
    h = model.stem(x).detach().requires_grad_()
    f = model.first(h.detach()).detach().requires_grad_()
    model.head(h + model.second(torch.relu(f))).square().mean().backward()
    assert h.grad is not None and f.grad is not None
    assert torch.equal(made.output, model(x))
    # What crosses is as it was at the cut, although `act` changes it in place behind it.
    assert [t.detach().equal(p.detach()) for t, p in zip(crossed.handed, (h, f), strict=True)] == [
        True,
        True,
    ]
    torch.testing.assert_close(crossed.true(), [h.grad, f.grad])


def test_the_parameters_get_what_backpropagation_gives_them(model: Skip) -> None:
    x = torch.randn(6, 4)
    made, _ = passed(model, x, "stem", "first", "act")
    made.backward(made.output.square().mean(), keep_graph=True)
    for name, parameter in model.named_parameters():
        (right,) = torch.autograd.grad(model(x).square().mean(), [parameter])
        torch.testing.assert_close(parameter.grad, right, msg=name)
    below = [model.stem.weight, model.stem.bias, model.first.weight]
    before = [list(crossed.true()) for crossed in made.crossed]
    for crossed in made.crossed[1:]:
        found = gradients_before(crossed, crossed.true(), below)
        torch.testing.assert_close(found, [p.grad for p in below])
    # Walks through the same graph from predicted gradients are not noted as true ones.
    gradients_before(made.crossed[2], [torch.ones_like(t) for t in made.crossed[2].handed], below)
    for crossed, true in zip(made.crossed, before, strict=True):
        assert all(map(torch.equal, crossed.true(), true))


def test_another_batch_size_and_a_gradient_that_does_not_come(model: Skip) -> None:
    made, boundaries = passed(model, torch.randn(6, 4), "first")
    made = boundaries.forward((torch.randn(3, 4),), 3)
    made.backward(made.crossed[0].handed[0].sum())
    assert [tuple(t.shape) for t in made.crossed[0].tensors()] == [(3, 8), (3, 8)]
    assert all(gradient.eq(0).all() for gradient in made.crossed[0].true())
