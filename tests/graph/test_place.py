"""What must lie on one side of a cut, and what every side may compute for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnic.graph.build import build_graph
from dnic.graph.graph import Graph
from dnic.trace import capture_coarse, capture_fine, recorded

X = torch.ones(3, 4)


class Net(nn.Module):
    """Three layers, some buffers, and a forward that is given."""

    def __init__(self, run: Callable[..., Any]) -> None:
        super().__init__()
        self.run = run
        self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.scale = nn.Parameter(torch.ones(4))
        self.table: Tensor
        self.mean: Tensor
        self.register_buffer("table", torch.ones(9, 4))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def graph_of(run: Callable[..., Any]) -> Graph:
    return build_graph(capture_fine(Net(run), (X,)))


def cuttable(run: Callable[..., Any], because: str = "in place") -> list[str]:
    """Operations right after which no rule with these words forbids a cut."""
    graph = graph_of(run)
    gaps = range(1, len(graph.operations))
    return [graph.operations[g - 1].name for g in gaps if because not in graph.blocked.get(g, "")]


def test_a_stream_that_is_changed_in_place_may_be_cut_anywhere() -> None:
    """The tensor that crosses is changed itself, and nobody looks at its old name."""

    def run(m: Net, x: Tensor) -> Tensor:
        h = m.a(x)
        h += m.b(h)
        h += m.c(h)
        return h

    assert cuttable(run) == ["x", "a", "b", "h", "c", "h_1"]


def test_a_change_through_a_view_stays_with_the_tensor() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        h = m.a(x)
        rows = h[:, :2]
        y = m.b(x)
        rows += y[:, :2]
        return m.c(h)

    assert cuttable(run) == ["x", "rows_1", "c"], "free to cut once the change is done"


def test_a_change_of_the_tensor_stays_with_a_view_that_is_used_later() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        h = m.a(x)
        first = h[:, :1]
        y = m.b(x)
        h += y
        return m.c(h) + first

    assert cuttable(run) == ["x", "a", "h", "c", "add"]


def test_a_view_that_is_not_used_later_forbids_nothing() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        h = m.a(x)
        first = h[:, :1]
        y = m.b(first.expand(-1, 4))
        h += y
        return m.c(h)

    assert cuttable(run) == ["x", "a", "first", "expand", "b", "h", "c"]


def test_of_two_ways_to_keep_a_change_right_the_shorter_is_forbidden() -> None:
    """A table is filled right where it is made, and used to the end."""

    def filled(m: Net, x: Tensor) -> Tensor:
        table = torch.zeros(x.shape[0], 4)
        table[:, 1:] = x[:, 1:]
        h = m.a(x) + table
        h = m.b(h) + table
        return m.c(h) + table

    assert "setitem" in cuttable(filled) and "h_1" in cuttable(filled)
    assert "table" not in cuttable(filled)

    def used_right_after(m: Net, x: Tensor) -> Tensor:
        table = torch.zeros(x.shape[0], 4)
        h = m.c(m.b(m.a(x)))
        table[:, 1:] = x[:, 1:]
        return h + table

    assert {"table", "a", "b", "c"} <= set(cuttable(used_right_after))
    assert "setitem" not in cuttable(used_right_after)


def test_a_change_by_a_module() -> None:
    class Activated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.act, self.b = nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            h = self.a(x)
            return self.b(self.act(h)) + h

    graph = build_graph(capture_fine(Activated(), (X,)))
    allowed = [g for g in range(1, len(graph.operations)) if g not in graph.blocked]
    assert [graph.operations[g - 1].name for g in allowed] == ["x", "a", "act", "b", "add"]
    (act,) = [n for n in capture_fine(Activated(), (X,)).graph.nodes if n.name == "act"]
    assert recorded(act).mutated
    assert graph.by_name["add"].inputs == ("b", "act"), "the old name means the new value"


def test_a_buffer_that_changes_stays_with_all_its_uses() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        h = m.norm(m.a(x))
        h = m.b(h)
        return m.c(h) - m.norm.running_mean

    assert cuttable(run) == ["x", "a", "sub"]
    graph = graph_of(run)
    assert graph.blocked[graph.position["c"]] == "norm.running_mean is changed in place"


def test_a_buffer_that_never_changes_may_be_used_on_both_sides() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        h = m.a(x) + m.mean
        h = m.b(h) + m.mean
        return m.c(h)

    assert "b" in cuttable(run) and "h" in cuttable(run)


def test_a_module_with_statistics_that_is_called_twice_stays_together() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        h = m.norm(m.a(x))
        h = m.b(h)
        return m.c(m.norm(h))

    assert cuttable(run) == ["x", "a", "norm_1", "c"]


def test_a_module_without_statistics_may_be_called_on_both_sides() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return m.a(m.b(m.a(x)))

    assert cuttable(run) == ["x", "a", "b", "a_1"]


def free(run: Callable[..., Any]) -> list[str]:
    return [op.name for op in graph_of(run).operations if op.free]


def test_positions_and_masks_are_free() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        positions = torch.arange(4)
        mask = positions[None, :] <= positions[:, None]
        weights = mask.float().softmax(-1)
        h = m.a(x) @ weights
        return m.b(h) @ weights

    assert free(run) == ["positions", "getitem", "getitem_1", "mask", "float_1", "weights"]


def test_what_follows_from_buffers_is_free_and_from_parameters_is_not() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        table = m.table[:4] * 2
        scale = m.scale * 2
        return m.a(x) @ table * scale

    assert free(run) == ["getitem", "table_1"]


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m.a(x) + torch.rand(4) * 2,
        lambda m, x: m.a(x) + torch.empty(4).normal_() * 2,
        lambda m, x: m.a(x) + torch.bernoulli(torch.full((4,), 0.5)) * 2,
    ],
)
def test_what_is_drawn_is_not_free(run: Callable[..., Any]) -> None:
    graph = graph_of(run)
    assert not graph.by_name["mul"].free, "two stages would draw two different ones"


def test_what_is_changed_later_is_not_free() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        table = torch.zeros(x.shape[0], 4)
        view = table[:, :2]
        h = m.a(x)
        table[:, 1] = h[:, 1].detach()
        return m.b(h) + table + view.sum()

    assert free(run) == []


def test_what_follows_from_a_buffer_that_changes_is_not_free() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        h = m.norm(m.a(x))
        m.mean.add_(1.0)
        return m.b(h) * (m.mean * 2) - m.norm.running_mean * 2

    assert free(run) == []


def test_a_call_of_a_module_is_not_free() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        return m.a(x) + m.b(torch.ones(1, 4))

    assert free(run) == ["ones"]


def test_free_operations_are_the_same_in_the_coarse_graph() -> None:
    def run(m: Net, x: Tensor) -> Tensor:
        mask = torch.ones(4, 4).tril()
        return m.b(m.a(x) @ mask) @ mask

    fine = capture_fine(Net(run), (X,))
    coarse = build_graph(capture_coarse(fine, (X,), ()), fine)
    assert [op.name for op in coarse.operations if op.free] == ["ones", "mask"]


def test_every_weight_is_known_with_its_other_names() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 9, bias=False)
            self.head.weight = self.embed.weight
            self.frozen = nn.Linear(4, 4).requires_grad_(False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.frozen(self.embed(x)))

    weights = build_graph(capture_fine(Tied(), (torch.zeros(2, 3).long(),))).weights
    assert [(w.name, w.aliases, w.nbytes, w.trained) for w in weights.values()] == [
        ("embed.weight", ("head.weight",), 4 * 36, True),
        ("frozen.weight", (), 4 * 16, False),
        ("frozen.bias", (), 4 * 4, False),
    ]
