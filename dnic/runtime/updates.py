"""In which steps a stage updates: all, or some by chance.

Sparse updates (Jaderberg et al. 2016, arXiv 1608.05343, section 3.1): in each step each stage goes
forward, and updates with some probability, whatever the others do. Whether it does follows from
(seed, stage, step) alone, so that both ends of an interface know whose gradients come back. Only
stages that do not wait for one another can have it: those of decoupled runs.
"""

from __future__ import annotations

from dataclasses import dataclass

from dnic.runtime.plan import Mode, TrainPlan
from dnic.runtime.seeds import update_draw


@dataclass(frozen=True)
class Updates:
    """The steps of a run in which one stage updates; `step in updates`.

    Attributes:
        probability: of each step, above 0; 1 is every step.
        seed: of the run.
        stage: whose.
    """

    probability: float = 1.0
    seed: int = 0
    stage: int = 0

    def __contains__(self, step: int) -> bool:
        if self.probability >= 1:
            return True
        return update_draw(self.seed, self.stage, step) < self.probability


EVERY_STEP = Updates()


def update_probability(train: TrainPlan, mode: Mode) -> float:
    """The probability in a mode: stages that wait for one another update in every step."""
    return train.update_probability if mode == "decoupled" else 1.0
