"""A microbatch in a stage: what its forward pass returned, and what is kept for the way back."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dnic.errors import RuntimeFault
from dnic.runtime.plan import StagePlan


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


def named(plan: StagePlan, output: Any) -> dict[str, Tensor]:
    """What a stage returned, by name.

    Raises:
        RuntimeFault: it is not as many tensors as planned.
    """
    outputs = output if isinstance(output, (tuple, list)) else (output,)
    if len(outputs) != len(plan.outputs):
        raise RuntimeFault(
            f"{plan.name} returned {len(outputs)} tensors",
            where="stages.py",
            expected=", ".join(plan.outputs),
        )
    return dict(zip(plan.outputs, outputs, strict=True))
