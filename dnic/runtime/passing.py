"""What a stage keeps of a microbatch between its forward and its backward pass."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Microbatch:
    """A microbatch that went forward and has not gone back yet.

    Attributes:
        inputs: the stage's inputs, by name.
        outputs: what went to the stages above; empty at the last stage.
        target: its targets.
        loss: its mean loss; None but at the last stage.
        number: microbatches of the same batch.
        weight: of the batch among those of the stage's replicas.
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    target: Tensor
    loss: Tensor | None
    number: int
    weight: float
