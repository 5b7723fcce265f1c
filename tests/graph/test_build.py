"""The compiler's own graph: values, spans, gaps that must not be cut, and its checker."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from dnic.errors import TraceError
from dnic.graph.build import build_graph, check_graph, print_graph
from dnic.graph.graph import Graph
from dnic.trace import capture_coarse, capture_fine


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6))
        self.bias = nn.Parameter(torch.zeros(6))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, dim=1)
        hidden = torch.cat([right, left], 1) + self.bias
        return self.second(hidden)


def graph_of(model: nn.Module, *inputs: Tensor) -> Graph:
    return build_graph(capture_fine(model, inputs))


def test_operations_values_and_parameters() -> None:
    graph = graph_of(Net(), torch.ones(5, 4))
    first = graph.by_name["first"]
    assert first.parameters == ("first.weight", "first.bias")
    assert first.parameter_bytes == 4 * (4 * 6 + 6)
    assert first.value is not None
    assert (first.value.shape, first.value.dtype, first.value.nbytes) == (("B", 6), "float32", 120)
    assert first.value.differentiable and not graph.by_name["x"].value.differentiable
    assert first.forward_flops == 2 * 5 * 4 * 6
    assert first.bytes_moved == 5 * 4 * 4 + first.parameter_bytes + 120
    assert graph.by_name["bias"].parameters == ("bias",)
    assert [op.name for op in graph.operations][-1] == "output"


def test_no_cut_inside_one_call_or_through_something_that_is_no_tensor() -> None:
    graph = graph_of(Net(), torch.ones(5, 4))
    chunk, left = graph.position["chunk"], graph.position["left"]
    assert "inside one call" in graph.blocked[left]
    assert chunk not in graph.blocked
    assert (
        graph.position["hidden"] not in graph.blocked
        or "inside" in graph.blocked[graph.position["hidden"]]
    )


def test_crossing_tensors_of_a_gap() -> None:
    graph = graph_of(Net(), torch.ones(5, 4))
    gap = graph.position["second_1"]
    assert [op.name for op in graph.crossing(gap)] == ["second_0"]


def test_a_change_in_place_forbids_the_cuts_before_it() -> None:
    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.a(x)
            other = torch.sigmoid(x)
            rows = hidden[:, :2]
            rows += other[:, :2]
            return self.b(hidden)

    graph = graph_of(InPlace(), torch.ones(5, 4))
    change, after = graph.position["rows_1"], graph.position["b"]
    for gap in range(graph.position["a"] + 1, change + 1):
        assert "in place" in graph.blocked[gap]
    assert after not in graph.blocked


def test_a_tensor_whose_size_follows_neither_batch_nor_constant_cannot_cross() -> None:
    class Squared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            pairs = self.linear(x).repeat(x.shape[0], 1)
            return torch.relu(pairs).mean(0, keepdim=True).expand(x.shape[0], 4)

    graph = graph_of(Squared(), torch.ones(3, 4))
    assert graph.by_name["pairs"].value is None
    assert "known size" in graph.blocked[graph.position["pairs"] + 1]


def test_spans_of_a_coarse_graph_cover_the_fine_one() -> None:
    fine = capture_fine(Net(), (torch.ones(5, 4),))
    fine_graph = build_graph(fine)
    coarse = build_graph(capture_coarse(fine, (torch.ones(5, 4),), ()), fine)
    second = coarse.by_name["second"]
    start, end = second.span
    assert [op.name for op in fine_graph.operations[start:end]] == [
        "second_0",
        "second_1",
        "second_2",
    ]
    assert coarse.operations[-1].span == (
        len(fine_graph.operations) - 1,
        len(fine_graph.operations),
    )
    assert coarse.by_name["hidden"].span[1] == start


def test_frozen_layers_pass_no_gradient() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    graph = graph_of(model, torch.ones(3, 4))
    flags = [op.value.differentiable for op in graph.operations if op.kind == "module" and op.value]
    assert flags == [False, True, True]


def test_the_checker_refuses_what_is_no_graph_and_prints_it() -> None:
    graph = graph_of(Net(), torch.ones(5, 4))
    broken = replace(graph, operations=(graph.operations[1], *graph.operations[2:]))
    with pytest.raises(TraceError, match="uses x before it exists") as caught:
        check_graph(broken)
    assert print_graph(broken) in str(caught.value)
    with pytest.raises(TraceError, match="stands twice"):
        check_graph(replace(graph, operations=(graph.operations[0], *graph.operations)))
    with pytest.raises(TraceError, match="one output"):
        check_graph(replace(graph, operations=graph.operations[:-1]))
    assert nx_edges(graph) == sum(len(op.inputs) for op in graph.operations)


def nx_edges(graph: Graph) -> int:
    return graph.networkx().number_of_edges()
