"""What a model may return, and modules that pass objects to one another."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, fx, nn

from dnic.trace import TracedModel, capture_coarse, capture_fine, has_own_loss

Written = Callable[..., nn.Module]


class Cache:
    """An object that a recording cannot write down."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []


@dataclass
class Answer:
    logits: Tensor
    loss: Tensor | None = None
    cache: Cache | None = None


class Two(NamedTuple):
    left: Tensor
    right: Tensor


def captured(run: Callable[..., Any], written: Written) -> TracedModel:
    return capture_fine(written(run, linear=nn.Linear(4, 4)), (torch.ones(3, 4),))


def returned(traced: TracedModel) -> Any:
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    return output.args[0]


def shown(value: Any) -> Any:
    """A structure with nodes as their names."""
    return fx.map_arg(value, lambda node: node.name)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (lambda h: h, "h"),
        (lambda h: (h, None, h), ("h", None, "h")),
        (lambda h: [h, {"inner": (h,)}], ["h", {"inner": ("h",)}]),
        (lambda h: {"logits": h, "count": 3}, {"logits": "h", "count": 3}),
        (lambda h: (h, Cache()), ("h", None)),
        (lambda h: {"logits": h, "cache": Cache()}, {"logits": "h"}),
        (lambda h: (h, (Cache(), h)), ("h", None)),
    ],
)
def test_outputs_keep_their_structure_without_objects(
    result: Callable[[Tensor], Any], expected: Any, written: Written
) -> None:
    def run(m: Any, x: Tensor) -> Any:
        h = m.linear(x) * 2
        return result(h)

    found = shown(returned(captured(run, written)))
    assert found == expected
    assert type(found) is type(expected) or isinstance(found, type(expected))


def test_dataclasses_and_named_tuples_are_built_anew(written: Written) -> None:
    def run(m: Any, x: Tensor) -> Any:
        h = m.linear(x) * 2
        return Answer(h, cache=Cache())

    built = returned(captured(run, written))
    assert built.target is Answer
    assert shown(dict(built.kwargs)) == {"logits": "h"}, "neither None nor the cache"

    def pair(m: Any, x: Tensor) -> Any:
        h = m.linear(x) * 2
        return Two(h, h)

    built = returned(captured(pair, written))
    assert built.target is Two
    assert shown(dict(built.kwargs)) == {"left": "h", "right": "h"}


def test_an_output_of_transformers(written: Written) -> None:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    def run(m: Any, x: Tensor) -> Any:
        h = m.linear(x) * 2
        return CausalLMOutputWithPast(loss=h.sum(), logits=h, past_key_values=Cache())

    traced = captured(run, written)
    built = returned(traced)
    assert built.target is CausalLMOutputWithPast
    assert shown(dict(built.kwargs)) == {"loss": "sum_1", "logits": "h"}
    assert has_own_loss(traced)


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (lambda h: h.mean(), True),
        (lambda h: (h.mean(), h), True),
        (lambda h: {"loss": h.mean(), "logits": h}, True),
        (lambda h: Answer(h, loss=h.mean()), True),
        (lambda h: h, False),
        (lambda h: (h, h.mean()), False),
        (lambda h: {"logits": h}, False),
        (lambda h: Answer(h), False),
        (lambda h: {"loss": h.mean().detach(), "logits": h}, False),
    ],
)
def test_where_a_loss_is_looked_for(
    result: Callable[[Tensor], Any], found: bool, written: Written
) -> None:
    traced = captured(lambda m, x: result(m.linear(x)), written)
    assert has_own_loss(traced) is found


class Remembers(nn.Module):
    """Puts its hidden state into an object that its caller gave, and gives the object back."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 4)
        self.down = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Cache) -> tuple[Tensor, Cache]:
        hidden = self.up(x)
        cache.seen.append(hidden)
        return self.down(hidden), cache


def test_modules_that_pass_objects_are_opened_even_when_no_cut_is_there() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = Remembers(), Remembers()
            self.last = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x: Tensor) -> Tensor:
            cache = Cache()
            x, cache = self.first(x, cache)
            x, cache = self.second(x, cache)
            return self.last(x) + cache.seen[0]

    inputs = (torch.ones(3, 4),)
    fine = capture_fine(Model(), inputs)
    assert fine.whole == {}
    coarse = capture_coarse(fine, inputs, ())
    called = [node.target for node in coarse.graph.nodes if node.op == "call_module"]
    assert called == ["first.up", "first.down", "second.up", "second.down", "last"]


class Gives(nn.Module):
    """Only gives an object."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Cache]:
        cache = Cache()
        cache.seen.append(x)
        return self.linear(x), cache


class Takes(nn.Module):
    """Only takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Cache) -> Tensor:
        return self.linear(x) + cache.seen[-1]


def test_one_side_of_an_object_is_enough_to_open_a_module(written: Written) -> None:
    def run(m: Any, x: Tensor) -> Tensor:
        x, cache = m.gives(x)
        return m.takes(x, cache)

    inputs = (torch.ones(3, 4),)
    fine = capture_fine(written(run, gives=Gives(), takes=Takes()), inputs)
    coarse = capture_coarse(fine, inputs, ())
    called = [node.target for node in coarse.graph.nodes if node.op == "call_module"]
    assert called == ["gives.linear", "takes.linear"]


def test_a_module_that_keeps_objects_to_itself_is_not_opened() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            cache = Cache()
            cache.seen.append(self.linear(x))
            return cache.seen[0]

    inputs = (torch.ones(3, 4),)
    coarse = capture_coarse(capture_fine(nn.Sequential(Inner()), inputs), inputs, ())
    assert [n.target for n in coarse.graph.nodes if n.op == "call_module"] == ["0"]


def test_results_of_modules_are_taken_apart_by_field_and_by_item() -> None:
    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Answer:
            return Answer(logits=self.linear(x), loss=x.sum())

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Inner()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x).logits * 2

    inputs = (torch.ones(3, 4),)
    coarse = capture_coarse(capture_fine(Model(), inputs), inputs, ())
    names = [node.name for node in coarse.graph.nodes]
    assert names == ["x", "inner", "inner_logits", "mul", "output"]
