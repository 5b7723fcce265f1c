"""Which cuts are probed, and what is said of the others."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from dnic.errors import PartitionError, SpecError
from dnic.graph.build import build_graph
from dnic.graph.graph import Graph
from dnic.probe.asked import Asked
from dnic.probe.candidates import candidates
from dnic.trace import capture_fine


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(32)
        self.up = nn.Linear(32, 64)
        self.down = nn.Linear(64, 32)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(torch.relu(self.up(self.norm(x))))


@pytest.fixture(scope="module")
def graph() -> Graph:
    model = nn.Sequential(*(Block() for _ in range(6)), nn.Linear(32, 3))
    return build_graph(capture_fine(model, (torch.randn(4, 32),)))


def names(graph: Graph, **asked: object) -> list[str]:
    found, _ = candidates(graph, Asked(**asked))  # type: ignore[arg-type]
    return [cut.point.after for cut in found]


def test_between_blocks_evenly(graph: Graph) -> None:
    assert names(graph, most_cuts=6) == ["0", "1", "2", "3", "4", "5"]
    assert names(graph, most_cuts=3) == ["0", "2", "5"]
    assert names(graph, most_cuts=1) == ["2"]
    many = names(graph, most_cuts=16)
    assert 12 <= len(many) <= 16 and {"0", "1", "2", "3", "4", "5"} < set(many)


def test_all_and_those_that_are_named(graph: Graph) -> None:
    every = names(graph, most_cuts=None)
    assert len(every) > 20 and len(set(every)) == len(every)
    assert names(graph, cuts=("1", "3.up")) == ["1", "3.up"]
    with pytest.raises(SpecError, match="nine"):
        names(graph, cuts=("nine",))


def test_shares_and_parameters_grow_along_the_model(graph: Graph) -> None:
    found, _ = candidates(graph, Asked(most_cuts=6))
    shares = [cut.share for cut in found]
    assert shares == sorted(shares) and shares[0] > 0 and shares[-1] < 1
    assert shares[2] == pytest.approx(0.5, abs=0.05)
    assert [len(cut.parameters) for cut in found] == [6, 12, 18, 24, 30, 36]


def test_memory_limits_the_cuts(graph: Graph) -> None:
    """17 batches of 4 * 32 floats and their gradients for each cut."""
    each = 17 * 2 * 4 * 32 * 4
    found, left = candidates(graph, Asked(most_cuts=6, memory_bytes=3 * each))
    assert len(found) == 3 and len(left) == 3
    assert all("GiB (--memory)" in skip.reason for skip in left)
    one, _ = candidates(graph, Asked(most_cuts=6, memory_bytes=0))
    assert len(one) == 1


def test_a_cut_that_no_gradient_crosses() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    graph = build_graph(capture_fine(model, (torch.randn(2, 4),)))
    found, skipped = candidates(graph, Asked())
    assert [cut.point.after for cut in found] == ["1"]
    assert [skip.cut for skip in skipped] == ["0"]
    with pytest.raises(PartitionError, match="after 0 nothing differentiable crosses it"):
        candidates(graph, Asked(cuts=("0",)))
