"""The guard of an interface: whether it goes on with what its head predicts, step by step.

A predicted gradient can be worse than none. The guard looks at how much of the true gradient's
variance the head explains: 1 - sum ||predicted - true||^2 / sum ||true||^2, which is 0 for the
gradient zero. It knows numbers only; `dnic.runtime.supervision` measures them.

               the head is good enough (`until`), or the steps are over
    warm-up  ────────────────────────────────────────────────────────►  predicted
       │                                                                  │    ▲
       │ the steps are over, and `patience`         `patience` checks     │    │ the wait is over,
       │ checks in a row have failed                in a row have failed  │    │ and the last check
       └────────────────────────────►  exact, or none  ◄──────────────────┘    │ has passed
                                             └─────────────────────────────────┘

Everything follows from steps and from the bits of gradients, nothing from time: a run with a guard
is as repeatable as one without. What it decides holds from the next step on. The other end of the
interface need not know: it sends every gradient in any case. Where an awaited gradient is not to be
had (not all come back, or they come later than the backward pass), the interface goes on with the
gradient zero instead.

Not handled: a head that explains some of the gradient and still does harm (`minimum` is for that),
and predictions that are not finite, which spoil a stage at their first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dnic.runtime.plan import GuardPlan

Regime = Literal["warm-up", "predicted", "exact", "none"]
# What an interface does that does without its head.
INSTEAD = {"exact": "waits for the true gradient", "none": "goes on without a gradient"}


@dataclass(frozen=True)
class Quality:
    """How well a head predicted, over the batches of one check.

    Attributes:
        cosine: between predicted and true gradient, the mean.
        norm_ratio: norm of the predicted gradient over that of the true one, the mean.
        explained: part of the true gradient's variance that it explains: 1 is all, 0 is what the
            gradient zero explains, below 0 is worse than that.
    """

    cosine: float
    norm_ratio: float
    explained: float


@dataclass(frozen=True)
class Turn:
    """A change of regime.

    Attributes:
        step: the first one of the new regime.
        regime: the new one.
        quality: of the last check; None before the first one.
        again: step at which the head is tried again; None where it predicts.
    """

    step: int
    regime: Regime
    quality: Quality | None
    again: int | None = None

    def to_json(self) -> dict[str, Any]:
        """For the epoch's record."""
        quality = {} if self.quality is None else asdict(self.quality)
        return {"step": self.step, "regime": self.regime, **quality, "again": self.again}


class Guard:
    """Decides for one interface.

    Args:
        plan: None: no guard, the head predicts whatever it is worth.
        until: the part of the variance at which warming up ends before its time; None: never.

    Attributes:
        turns: what has changed since `begin`.
    """

    def __init__(self, plan: GuardPlan | None, until: float | None = None) -> None:
        self._plan = plan
        self._until = until
        self._warmup_steps = 0
        self._unlocked = False  # before its time
        self._failures = 0  # checks in a row
        self._quality: Quality | None = None
        self._again: int | None = None  # while the head is not used
        self._wait_steps = plan.retry_after if plan is not None else 0
        self._regime: Regime = "warm-up"
        self.turns: list[Turn] = []

    @property
    def measures(self) -> bool:
        """Whether it wants to be told of the heads' quality."""
        return self._plan is not None or self._until is not None

    @property
    def check_every(self) -> int:
        """Batches of one check."""
        return (self._plan or GuardPlan()).check_every

    def begin(self, warmup_steps: int) -> None:
        """Begins an epoch of a run that warms up for so many steps at most."""
        self._warmup_steps = warmup_steps
        self.turns = []

    def regime(self, step: int) -> Regime:
        """How the interface gets its gradient at a step; asked in the order of the steps."""
        regime = self._next(step)
        if regime != self._regime:
            # That warming up is over at its time is no news.
            if self._again is not None or self._unlocked or self._regime != "warm-up":
                self.turns.append(Turn(step, regime, self._quality, self._again))
            self._regime = regime
        return regime

    def judge(self, quality: Quality) -> None:
        """Takes the result of a check."""
        self._quality = quality
        self._failures = 0 if self._passes() else self._failures + 1
        if self._regime == "warm-up" and self._until is not None:
            self._unlocked = self._unlocked or quality.explained >= self._until

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions depend on."""
        return {
            "unlocked": self._unlocked,
            "failures": self._failures,
            "quality": None if self._quality is None else asdict(self._quality),
            "again": self._again,
            "wait_steps": self._wait_steps,
            "regime": self._regime,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self._unlocked = bool(state["unlocked"])
        self._failures = int(state["failures"])
        self._quality = None if state["quality"] is None else Quality(**state["quality"])
        self._regime = state["regime"]
        if self._plan is not None:  # else it was switched off meanwhile
            self._again, self._wait_steps = state["again"], int(state["wait_steps"])

    def _next(self, step: int) -> Regime:
        plan = self._plan
        if plan is not None and self._again is not None:
            if step < self._again:
                return plan.fallback
            self._wait_steps *= 2
            if not self._passes():  # on true gradients it would be no better
                self._again = step + self._wait_steps
                return plan.fallback
            self._again, self._failures = None, 0
        if step < self._warmup_steps and not self._unlocked:
            return "warm-up"
        if plan is not None and self._failures >= plan.patience:
            self._again = step + self._wait_steps
            return plan.fallback
        return "predicted"

    def _passes(self) -> bool:
        """Whether the last check found the head better than the gradient zero."""
        if self._plan is None or self._quality is None:
            return True
        return self._quality.explained > self._plan.minimum  # never true of NaN


def told(name: str, turn: Mapping[str, Any]) -> str:
    """A change of regime in words.

    Args:
        name: of the interface.
        turn: as `Turn.to_json` has it.
    """
    explained = turn.get("explained")
    worth = "" if explained is None else f" (it explains {explained:.0%} of the true gradient)"
    start = f"from step {turn['step']} on {name}"
    if turn["regime"] == "predicted":
        return f"{start} goes on with what its head predicts{worth}"
    use = f"the head is of no use{worth}, and is tried again at step {turn['again']}"
    return f"{start} {INSTEAD[turn['regime']]}: {use}"
