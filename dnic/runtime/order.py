"""In which order a stage runs the forward and backward passes of a step's microbatches.

Eager 1F1B (Zhuang et al. 2022, arXiv 2211.05322, section 4): some forward passes ahead, then one
forward, one backward, then the backward passes that are left. Here 3 stages that wait for one
another, 5 microbatches:

    stage 0   F0 F1 F2 F3 F4 B0 B1 B2 B3 B4
    stage 1   F0 F1 F2 B0 F3 B1 F4 B2 B3 B4
    stage 2   F0 B0 F1 B1 F2 B2 F3 B3 F4 B4

Plain 1F1B (Narayanan et al. 2021, arXiv 2104.04473) runs one forward ahead for each stage that
follows, which leaves no time for messages: of two stages one idles for a round trip in every second
microbatch. Two for each hide it, for the activations of one more microbatch for each stage that
follows. Which follow is counted along interfaces whose gradient is awaited: a locked group has a
pipeline of its own, a stage alone has nothing to run ahead for. `torch.distributed.pipelining`
counts ranks, and knows chains only.

No stage can wait in a circle. Order all passes by key `k` for forward `k` and `k + ahead` for
backward `k`, forwards first, then stages up for forwards and down for backwards: each pass comes
after all that it waits for, because a stage runs at least as far ahead as those that it awaits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from functools import lru_cache

from dnic.runtime.crossing import crossings, warmup_steps
from dnic.runtime.options import Mode
from dnic.runtime.plan import InterfacePlan, Plan

AHEAD_OF_EACH = 2


@dataclass(frozen=True, slots=True)
class Pass:
    """A pass of one microbatch through a stage."""

    forward: bool
    microbatch: int

    def __str__(self) -> str:
        return f"{'F' if self.forward else 'B'}{self.microbatch}"


@lru_cache
def passes(ahead: int, microbatches: int) -> tuple[Pass, ...]:
    """The passes of one step: every microbatch forward and back, each in their order.

    Args:
        ahead: forwards before the first backward, beside the one that belongs to it.
        microbatches: in the batch.
    """
    ahead = min(ahead, microbatches)
    order = [Pass(True, k) for k in range(ahead)]
    for k in range(ahead, microbatches):
        order += [Pass(True, k), Pass(False, k - ahead)]
    order += [Pass(False, k) for k in range(microbatches - ahead, microbatches)]
    return tuple(order)


def ahead(plan: Plan, waits: Callable[[InterfacePlan], bool]) -> tuple[int, ...]:
    """How many forwards each stage runs ahead.

    Args:
        plan: the stages and their interfaces.
        waits: whether the gradient of an interface is awaited in the same step.
    """
    depth = [0] * len(plan.stages)
    for interface in sorted(plan.interfaces, key=lambda interface: -interface.source):
        if interface.differentiable and waits(interface):
            depth[interface.source] = max(depth[interface.source], depth[interface.to] + 1)
    return tuple(AHEAD_OF_EACH * stages for stages in depth)


def locked(interface: InterfacePlan, mode: Mode) -> bool:
    """Whether the gradient of an interface is awaited in every step of a run."""
    return mode in ("exact", "oracle") or interface.gradient == "exact"


def may_lock(interface: InterfacePlan, mode: Mode) -> bool:
    """Whether the guard of an interface may have its gradient awaited; its source alone knows."""
    guard = interface.guard if mode == "decoupled" and interface.return_every == 1 else None
    return guard is not None and guard.fallback == "exact"


def most_ahead(plan: Plan, mode: Mode) -> tuple[int, ...]:
    """How many forwards each stage runs ahead at most: while warming up, or for their guards."""
    return ahead(
        plan, lambda row: locked(row, mode) or row.warmup_steps != 0 or may_lock(row, mode)
    )


class StageOrder:
    """The passes of one stage, step by step.

    While the heads of an interface warm up its gradient is awaited like an exact one; stages below
    run further ahead. Every process knows when that ends at the latest. Where an interface has a
    guard only its own source knows when it waits; stages that wait below it run ahead as if it did.

    Args:
        plan: the stages and their interfaces.
        mode: of the run.
        stage: which.
    """

    def __init__(self, plan: Plan, mode: Mode, stage: int) -> None:
        self._plan = replace(plan, interfaces=crossings(plan, mode).interfaces)
        self._mode = mode
        self._stage = stage
        self._warmup: dict[str, int] = {}

    def begin(self, total_steps: int) -> None:
        """Takes over how long the run is, of which warming up may be a part."""
        self._warmup = {row.name: warmup_steps(row, total_steps) for row in self._plan.interfaces}

    def passes(
        self, step: int, microbatches: int, awaited: Collection[str] = ()
    ) -> tuple[Pass, ...]:
        """The passes of a step, counted from the run's first.

        Args:
            step: which.
            microbatches: of its batch.
            awaited: interfaces of this stage whose gradient is awaited in this step, beside those
                of which all processes know.
        """
        if microbatches == 1:
            return passes(0, 1)

        def waits(row: InterfacePlan) -> bool:
            return locked(row, self._mode) or step < self._warmup[row.name]

        # What other stages' guards have decided is not known here: at least as far as they might.
        most = ahead(self._plan, lambda row: waits(row) or may_lock(row, self._mode))
        following = [
            most[row.to] + AHEAD_OF_EACH
            for row in self._plan.interfaces
            if row.source == self._stage and row.differentiable
            if waits(row) or row.name in awaited
        ]
        return passes(max(following, default=0), microbatches)
