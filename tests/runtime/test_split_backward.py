"""A backward pass in two parts gives what one gives, for every kind of graph."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dnic.runtime.split_backward import backward_inputs, backward_whole

SIZE = 6


class Shared(nn.Module):
    """Parameters at several places, some beside others; one that no input leads to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(SIZE, SIZE)
        self.one = nn.Parameter(torch.randn(SIZE))
        self.two = nn.Parameter(torch.randn(SIZE))
        self.norm = nn.LayerNorm(SIZE)
        self.batch = nn.BatchNorm1d(SIZE)
        self.table = nn.Parameter(torch.randn(3, 4))
        self.frozen = nn.Parameter(torch.randn(SIZE), requires_grad=False)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        h = self.norm(torch.relu(self.layer(x))) + self.one
        z = F.linear(h, self.layer.weight, self.two)
        z = self.batch(torch.tanh(self.layer(z))) + y + self.one + self.two * self.frozen
        return z.view(-1, 2, 3).transpose(1, 2), self.table * 2, self.table, (x * y).sum(1)


class Recurrent(nn.Module):
    """One node for many parameters, and a lookup beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(SIZE, SIZE, batch_first=True)
        self.words = nn.Embedding(5, SIZE)
        self.out = nn.Linear(SIZE, 2)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        words = self.words(y.detach().long().abs()[:, :4] % 5)
        hidden, _ = self.cells(x.unsqueeze(1).expand(-1, 4, -1) + words)
        return (self.out(hidden),)


class Block(nn.Module):
    """Attention and dropout, computed again going back; an output that takes no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.TransformerEncoderLayer(SIZE, 2, 12, dropout=0.1, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        both = torch.stack([x, y], 1)
        again = checkpoint(self.block, both, use_reentrant=False)
        return again, both.detach().argmax(2)


class Hooked(nn.Module):
    """A hook of the user's, which must act once."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(SIZE, SIZE), nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        hidden = self.before(x)
        if hidden.requires_grad:
            hidden.register_hook(lambda gradient: gradient * 0.5)
        return (self.after(hidden * y),)


def back(
    how: Callable[..., tuple[tuple[Tensor | None, ...], object]],
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    seed: int,
) -> tuple[Tensor | None, ...]:
    torch.manual_seed(seed)
    outputs = model(x, y)
    gradients = [torch.randn_like(o) if o.requires_grad else None for o in outputs]
    found, deferred = how(outputs, gradients, [x, y])
    deferred.run()  # type: ignore[attr-defined]
    return found


@pytest.mark.parametrize("wanted", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize("kind", [Shared, Recurrent, Block, Hooked])
def test_equals_one_backward_pass(kind: type[nn.Module], wanted: tuple[bool, bool]) -> None:
    """Over several microbatches, whose gradients add up."""
    torch.manual_seed(0)
    model = kind()
    other = copy.deepcopy(model)
    for seed in range(3):
        x, y = (torch.randn(8, SIZE, requires_grad=grad) for grad in wanted)
        same = [tensor.detach().clone().requires_grad_(tensor.requires_grad) for tensor in (x, y)]
        found = back(backward_inputs, model, x, y, seed)
        expected = back(backward_whole, other, same[0], same[1], seed)
        for one, two, grad in zip(found, expected, wanted, strict=True):
            assert (one is None) == (two is None)
            assert grad or one is None
            assert one is None or one.is_contiguous()
            torch.testing.assert_close(one, two)
    assert x.grad is y.grad is None
    for (name, parameter), (_, theirs) in zip(
        model.named_parameters(), other.named_parameters(), strict=True
    ):
        torch.testing.assert_close(parameter.grad, theirs.grad, msg=name)


def test_the_first_part_leaves_the_parameters_to_the_second() -> None:
    layer, first = nn.Linear(SIZE, SIZE), torch.randn(8, SIZE, requires_grad=True)
    output = torch.tanh(layer(first))
    found, deferred = backward_inputs([output], None, [first])
    assert found[0] is not None and layer.weight.grad is None
    deferred.run()
    kept = layer.weight.grad
    assert kept is not None and kept.abs().max() > 0
    deferred.run()
    assert torch.equal(layer.weight.grad, kept)


def test_an_outputs_gradient_that_does_not_come() -> None:
    layer, x = nn.Linear(SIZE, SIZE), torch.randn(8, SIZE, requires_grad=True)
    found, deferred = backward_inputs([layer(x)], [None], [x])
    deferred.run()
    assert found == (None,)
    assert layer.weight.grad is None
