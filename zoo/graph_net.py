"""Message passing on graphs of one size: messages summed with index_add."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import StackDataset

NODES, EDGES, FEATURES, WIDTH, CLASSES = 6, 12, 8, 32, 3


class Message(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.message = nn.Sequential(nn.Linear(2 * WIDTH, WIDTH), nn.ReLU())
        self.update = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, nodes: Tensor, source: Tensor, to: Tensor) -> Tensor:
        messages = self.message(torch.cat([nodes[source], nodes[to]], dim=1))
        arrived = torch.zeros_like(nodes).index_add(0, to, messages)
        return F.relu(self.update(torch.cat([nodes, arrived], dim=1))) + nodes


class GraphNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(FEATURES, WIDTH)
        self.layers = nn.ModuleList(Message() for _ in range(5))
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        graphs = nodes.size(0)
        first = torch.arange(graphs, device=nodes.device)[:, None] * NODES
        source, to = (edges[..., 0] + first).flatten(), (edges[..., 1] + first).flatten()
        hidden = self.embed(nodes).flatten(0, 1)
        for layer in self.layers:
            hidden = layer(hidden, source, to)
        return self.head(hidden.view(graphs, NODES, WIDTH).sum(dim=1))


def build_model() -> nn.Module:
    return GraphNet()


def graphs(count: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    nodes = torch.randn(count, NODES, FEATURES, generator=generator)
    return nodes, torch.randint(NODES, (count, EDGES, 2), generator=generator)


def example_inputs() -> tuple[Tensor, ...]:
    return graphs(4)


def loss(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target)


def train_data() -> StackDataset:
    return StackDataset(StackDataset(*graphs(64)), torch.arange(64) % CLASSES)
