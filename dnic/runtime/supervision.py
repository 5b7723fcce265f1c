"""What an interface does with its heads, step by step: whether it waits, and whether they learn.

Warm-up, guard (`dnic.runtime.guard`) and `train_every` in one place, which the engine's gradient
sources and the single-process reference share: both do the same at the same steps. The heads'
statistics are summed up where they are and read once a check, so that nothing waits for the device
in between.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dnic.runtime.crossing import warmup_steps
from dnic.runtime.guard import Guard, Quality, Regime
from dnic.runtime.plan import InterfacePlan
from dnic.runtime.replicas import Replicas

if TYPE_CHECKING:
    from dnic.runtime.predictor import PredictionStatistics


class Supervision:
    """Decides for one interface with heads.

    Args:
        plan: the interface as it is in the mode of the run (`dnic.runtime.crossing`).
        replicas: of the stage, which decide together; None for no others.

    Attributes:
        regime: of the step that was last asked for.
    """

    def __init__(self, plan: InterfacePlan, replicas: Replicas | None = None) -> None:
        self._plan = plan
        self._replicas = replicas or Replicas()
        self._guard = Guard(plan.guard, plan.warmup_until)
        self._train_every = plan.head.train_every if plan.head is not None else 1
        self._since = 0  # the step of the last turn
        self._brought = 0  # batches whose true gradients have come
        self._learnt = 0  # batches since the last check
        self._sums: Tensor | None = None
        self.regime: Regime = "warm-up"

    def begin(self, total_steps: int) -> None:
        """Begins an epoch of a run of so many steps."""
        self._guard.begin(warmup_steps(self._plan, total_steps))

    def turn(self, step: int) -> bool:
        """Whether the true gradient is awaited at a step; asked in the order of the steps."""
        before, self.regime = self.regime, self._guard.regime(step)
        if before != self.regime:  # no check is of both
            self._since, self._learnt, self._sums = step, 0, None
        return self.awaits

    @property
    def awaits(self) -> bool:
        """Whether the true gradient is awaited."""
        return self.regime in ("warm-up", "exact")

    @property
    def tried(self) -> bool:
        """Whether the head is on trial, in the place of no gradient."""
        return self._guard.tries

    def learns(self) -> bool:
        """Whether the heads learn from the next batch with gradients; asked once for each."""
        self._brought += 1
        return self._brought % self._train_every == 0

    def learnt(
        self, statistics: PredictionStatistics, weight: float = 1.0, step: int | None = None
    ) -> None:
        """Counts a batch that the heads have learnt from; waits for the device once a check.

        Args:
            statistics: of that batch.
            weight: of this replica's share of it.
            step: of that batch; one of before the last turn tells nothing of what came of it. None:
                of the step at hand.
        """
        if not self._guard.measures or (step is not None and step < self._since):
            return
        zero = torch.as_tensor(statistics.zero, device=statistics.loss.device)
        given = statistics.cosine, statistics.norm_ratio, statistics.loss, zero
        now = torch.stack([figure.detach().double() for figure in given]) * weight
        self._sums = now if self._sums is None else self._sums + now
        self._learnt += 1
        if self._learnt >= self._guard.check_every:
            cosine, norm_ratio, loss, zero = self._replicas.average(self._sums).tolist()
            self._guard.judge(
                Quality(cosine / self._learnt, norm_ratio / self._learnt, explained(loss, zero))
            )
            self._learnt, self._sums = 0, None

    def untold(self) -> None:
        """Counts a batch that heads have learnt from which do not say how they did."""
        self._guard.trust()

    def figures(self) -> dict[str, Any]:
        """For the epoch's record: the regime, and what has changed in this epoch."""
        return {"regime": self.regime, "turns": [turn.to_json() for turn in self._guard.turns]}

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions depend on."""
        return {
            "guard": self._guard.state_dict(),
            "since": self._since,
            "brought": self._brought,
            "learnt": self._learnt,
            "sums": self._sums,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self._guard.load_state_dict(state["guard"])
        self.regime = state["guard"]["regime"]
        self._since = int(state.get("since", 0))
        self._brought, self._learnt = int(state["brought"]), int(state["learnt"])
        self._sums = state["sums"]


def explained(loss: float, zero: float) -> float:
    """The part of the variance that a prediction explains.

    Args:
        loss: its squared error, the sum over some batches.
        zero: that of the gradient zero; where nothing was to be explained, nothing was missed.
    """
    if zero == 0:
        return 0.0 if loss == 0 else float("-inf")
    return 1.0 - loss / zero
