"""What all ways to train a model have in common: the model, its costs, what is asked for."""

from __future__ import annotations

from dataclasses import dataclass

from dnic.cost import Costs
from dnic.graph.graph import Graph
from dnic.partition.choose import Placement
from dnic.partition.cuts import CutTable
from dnic.partition.evaluate import machine_of
from dnic.partition.plan import PlannedTarget
from dnic.partition.request import PartitionRequest
from dnic.schedule import Machine


@dataclass(frozen=True)
class Setting:
    """A model on devices.

    Attributes:
        graph: the fine capture.
        table: its gaps.
        costs: of its operations, on a device of speed 1.
        request: what is asked for.
        target: what training targets look like; None without training data.
        loader_us: reading a batch.
    """

    graph: Graph
    table: CutTable
    costs: Costs
    request: PartitionRequest
    target: PlannedTarget | None
    loader_us: float

    @property
    def batch(self) -> int:
        """Samples in a batch."""
        return self.graph.batch_size

    @property
    def posted_ahead(self) -> bool:
        """Whether a pipeline's receives wait for its messages.

        torch posts each right before it is needed: over gloo nothing moves until then.
        """
        return self.request.overlap > 0

    def machine(self) -> Machine:
        """What does not belong to one stage."""
        return machine_of(self.costs, overlap=self.request.overlap)

    def speeds(self, placement: Placement) -> tuple[float, ...]:
        """Of each stage's device."""
        return tuple(self.request.sorts[group].speed for group in placement.groups)


def forced(request: PartitionRequest) -> bool:
    """Whether the model must be cut: then it is not on every device whole."""
    return request.cuts is not None or (request.stages or 1) > 1
