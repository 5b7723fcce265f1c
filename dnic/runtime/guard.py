"""The guard of an interface: whether it goes on with what its head predicts, step by step.

A predicted gradient can be worse than none. The guard looks at how much of the true gradient's
variance the head explains: 1 - sum ||predicted - true||^2 / sum ||true||^2, which is 0 for the
gradient zero. It knows numbers only; `dnic.runtime.supervision` measures them.

More than nothing is not enough. What little a head explains that knows no targets is the mean of
the gradients, which is gone once the layers behind have settled; the rest is error, and an
optimizer that divides by the size of gradients (Adam) walks along it as fast as along the truth.
Shrinking the prediction is no help, for the same reason. So a head is of use from a share of the
variance on. That is asked for twice. `at_first`, which may be little: in `proof` checks in a row
before anything follows the head, and from then on, as features that rest are easy. `minimum`: from
the `growth`-th check in use on, when features have had the time to follow the head and it to follow
them. One that has grown and fails must explain `minimum` ever after. Where a stage cannot go back
to the truth, it is on trial until that is shown (`dnic.runtime.trial`).

    warm-up  ─────────────────────────────────────────────────────►  predicted
       │    the head is good enough (`until`), or the steps are         │   ▲
       │    over and `proof` checks in a row have passed                │   │ the wait is over, if
       │                                                                │   │ there was one, and
       │ the steps are over, and      `patience` checks in a row have   │   │ `proof` checks in a
       │ `patience` checks in a row   failed, or the first one in use   │   │ row have passed
       │ have failed                                                    │   │
       └───────────────────────────►  exact, or none  ◄─────────────────┘   │
                                            └───────────────────────────────┘

Everything follows from steps and from the bits of gradients, nothing from time: a run with a guard
is as repeatable as one without. What it decides holds from the next step on. The other end of the
interface need not know: it sends every gradient in any case. Where an awaited gradient is not to be
had (not all come back, or they come later than the backward pass), the interface goes on with the
gradient zero instead, also between its warm-up and its head's proof.

Not handled: what a head does to a stage in `growth` checks, or in `patience` ones when it was good
and has turned bad; a head that explains much and leads astray all the same; predictions that are
not finite, which spoil a stage at their first step.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from dnic.runtime.plan import GuardPlan

Regime = Literal["warm-up", "predicted", "exact", "none"]
# What an interface does that does without its head.
INSTEAD = {"exact": "waits for the true gradient", "none": "goes on without a gradient"}
# What a prediction must explain more than, where nothing else is said (`Predictor`).
LEAST_EXPLAINED = 0.2
LEAST_OF_POSITIONS = 0.5
LEAST_AT_FIRST = 0.1


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
        again: step at which the head is tried again; None where it predicts, or never did.
        least: what the head must explain more than; None where nothing is asked of it.
    """

    step: int
    regime: Regime
    quality: Quality | None
    again: int | None = None
    least: float | None = None

    def to_json(self) -> dict[str, Any]:
        """For the epoch's record."""
        quality = {} if self.quality is None else asdict(self.quality)
        rest = {"again": self.again, "least": self.least}
        return {"step": self.step, "regime": self.regime, **quality, **rest}


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
        asked = plan or GuardPlan()
        self._minimum, self._at_first = asked.shares(LEAST_EXPLAINED, LEAST_AT_FIRST)
        self._growth = 1 if plan is None else plan.growth
        self._proof = 1 if plan is None else plan.proof
        self._patience = 1 if plan is None else plan.patience
        self._warmup_steps = 0
        self._unlocked = False  # before its time
        self._passed = 0  # checks in a row
        self._failures = 0  # checks in a row
        self._trusted = False
        self._used = 0  # checks since it is used
        self._credit = False  # passed one of them
        self._shown = False  # passed one of them that asked for `minimum`
        self._strict = False  # it had its time to grow
        self._quality: Quality | None = None
        self._again: int | None = None  # while the head is not used any more
        self._wait_steps = plan.retry_after if plan is not None else 0
        self._regime: Regime = "warm-up"
        self.turns: list[Turn] = []

    @property
    def measures(self) -> bool:
        """Whether it wants to be told of the heads' quality."""
        return self._plan is not None or self._until is not None

    @property
    def tries(self) -> bool:
        """Whether the head is on trial, in place of no gradient: it has not shown itself yet."""
        instead = None if self._plan is None else self._plan.fallback
        used = self._regime == "predicted" and not self._trusted
        return instead == "none" and used and not self._shown

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
            in_time = self._regime == "warm-up" and step == self._warmup_steps
            if not in_time or self._failures >= self._patience:
                least = None if self._plan is None else self._least
                self.turns.append(Turn(step, regime, self._quality, self._again, least))
            self._regime = regime
        return regime

    def judge(self, quality: Quality) -> None:
        """Takes the result of a check."""
        self._quality = quality
        in_use = self._regime == "predicted"
        self._used += in_use
        if self._passes(quality):
            self._passed, self._failures = self._passed + 1, 0
            self._credit = self._credit or in_use
            self._shown = self._shown or (in_use and quality.explained > self._minimum)
        else:
            self._passed, self._failures = 0, self._failures + 1
        if self._regime == "warm-up" and self._until is not None and self._passed:
            self._unlocked = self._unlocked or quality.explained >= self._until

    def trust(self) -> None:
        """Goes on with a head that learns and never says how it does: there is nothing to judge."""
        self._trusted = True

    def state_dict(self) -> dict[str, Any]:
        """Everything that later decisions depend on."""
        return {
            "unlocked": self._unlocked,
            "passed": self._passed,
            "failures": self._failures,
            "trusted": self._trusted,
            "used": self._used,
            "credit": self._credit,
            "shown": self._shown,
            "strict": self._strict,
            "quality": None if self._quality is None else asdict(self._quality),
            "again": self._again,
            "wait_steps": self._wait_steps,
            "regime": self._regime,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was called."""
        self._unlocked = bool(state["unlocked"])
        self._failures = int(state["failures"])
        # Runs of before did not note these.
        self._passed = int(state.get("passed", 0))
        self._trusted = bool(state.get("trusted", False))
        self._credit = bool(state.get("credit", True))
        self._used = int(state.get("used", self._growth))
        self._shown = bool(state.get("shown", True))
        self._strict = bool(state.get("strict", False))
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
            if not self._proven:  # on true gradients it would be no better
                self._again = step + self._wait_steps
                return plan.fallback
            self._again = None
        if step < self._warmup_steps and not self._unlocked:
            return "warm-up"
        if plan is None:
            return "predicted"
        if self._regime == "predicted":
            # Features that did not move yet told nothing of what becomes of them.
            if self._failures < (plan.patience if self._credit else 1):
                return "predicted"
            self._again = step + self._wait_steps
            self._strict = self._strict or self._used >= plan.growth
            return plan.fallback
        if self._unlocked or self._proven:
            self._used, self._failures, self._credit, self._shown = 0, 0, False, False
            return "predicted"
        waits = self._regime == "warm-up" and self._failures < plan.patience
        return "warm-up" if waits and plan.fallback == "exact" else plan.fallback

    @property
    def _proven(self) -> bool:
        """Whether the head may be used that is not used yet, or not any more."""
        return self._trusted or self._passed >= self._proof

    @property
    def _least(self) -> float:
        """What the head must explain more than as things are."""
        grown = self._regime == "predicted" and self._used >= self._growth
        return self._minimum if self._strict or grown else self._at_first

    def _passes(self, quality: Quality) -> bool:
        """Whether a check found the head of use."""
        return self._plan is None or quality.explained > self._least  # never true of NaN


def told(name: str, turn: Mapping[str, Any]) -> str:
    """A change of regime in words.

    Args:
        name: of the interface.
        turn: as `Turn.to_json` has it.
    """
    explained, least = turn.get("explained"), turn.get("least")
    worth = "" if explained is None else f" (it explains {explained:.0%} of the true gradient)"
    start = f"from step {turn['step']} on {name}"
    if turn["regime"] == "predicted":
        return f"{start} goes on with what its head predicts{worth}"
    if explained is not None and least is not None and explained > 0:
        worth = f"{worth[:-1]}, not {least:.0%})"
    again = turn["again"]
    use = "of no use yet" if again is None else "of no use"
    then = "" if again is None else f", and is tried again at step {again}"
    return f"{start} {INSTEAD[turn['regime']]}: the head is {use}{worth}{then}"
