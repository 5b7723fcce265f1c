"""What tests of whole plans have in common: how they train, targets, a plan as asked for."""

from __future__ import annotations

from dnic.cost import DeviceProfile, cost_model
from dnic.graph.graph import Graph
from dnic.partition import (
    PartitionRequest,
    Plan,
    PlannedOptimizer,
    PlannedTarget,
    PlannedTraining,
    make_plan,
    place,
)

TRAINING = PlannedTraining(batch_size=4, epochs=1, optimizer=PlannedOptimizer())
LABELS = PlannedTarget(shape=("B",), dtype="int64", classes=10)


def planned(
    graph: Graph,
    device: DeviceProfile,
    request: PartitionRequest,
    target: PlannedTarget | None = LABELS,
) -> Plan:
    """The plan of a fine graph, with labels for targets unless told otherwise."""
    costs = cost_model(graph, device)
    placed = place(graph, costs, request, target=target)
    return make_plan(graph, graph, costs, placed.cuts, request, TRAINING, target, placed)
