"""A graph at another batch size."""

from __future__ import annotations

import torch
from torch import nn

from dnic.graph.batch import at_batch
from dnic.graph.build import build_graph
from dnic.trace import capture_fine


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 16)
        self.register_buffer("table", torch.randn(5, 16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu() @ self.table.t()


def test_as_if_traced_at_that_size() -> None:
    """Bytes and FLOPs are those of a capture at the other size; overheads of nothing are added."""
    torch.manual_seed(0)
    small, large = (build_graph(capture_fine(Net(), (torch.randn(n, 8),))) for n in (4, 12))
    grown = at_batch(small, 12)
    assert grown.batch_size == 12
    for there, here in zip(large.operations, grown.operations, strict=True):
        assert (there.name, there.value) == (here.name, here.value)
        assert there.forward_flops == here.forward_flops
    weighted = [op.name for op in large.operations if op.parameters]
    for name in weighted:
        assert grown.by_name[name].bytes_moved == large.by_name[name].bytes_moved


def test_the_same_size_is_the_same_graph() -> None:
    graph = build_graph(capture_fine(Net(), (torch.randn(4, 8),)))
    assert at_batch(graph, 4) is graph
