"""The turns of a stage's interfaces: what begins and ends a step with an update.

A turn is the beginning of a step at an interface with heads (`dnic.runtime.supervision`). What the
next ones depend on is kept and restored here, with what a stage on trial was before
(`dnic.runtime.trial`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from dnic.runtime.plan import Plan
from dnic.runtime.sources import GradientSource
from dnic.runtime.trial import Trial

_TRIAL = "(trial)"  # no interface is called so


class Turns:
    """Of one stage.

    Args:
        stage, optimizer: that is trained, and what updates it.
        plan: of the run.
        sources: of the stage's interfaces to stages above.
    """

    def __init__(
        self,
        stage: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        sources: Sequence[GradientSource],
    ) -> None:
        self._sources = sources
        heads = [source.supervision for source in sources]
        self._trial = Trial(stage, optimizer, plan, heads)

    def begin(self, step: int, version: int) -> list[str]:
        """Begins a step with an update; the interfaces whose true gradient is awaited."""
        awaited = [source.plan.name for source in self._sources if source.turn(step, version)]
        self._trial.turned()
        return awaited

    def end(self) -> None:
        """Ends a step; its update has been made."""
        self._trial.updated()

    def state_dict(self) -> dict[str, Any]:
        """The state of each interface with heads, by name."""
        found: dict[str, Any] = {
            source.plan.name: source.supervision.state_dict()
            for source in self._sources
            if source.supervision is not None
        }
        trial = self._trial.state_dict()
        return found | {_TRIAL: trial} if trial else found

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned; interfaces without an entry start anew."""
        for source in self._sources:
            if source.supervision is not None and source.plan.name in state:
                source.supervision.load_state_dict(state[source.plan.name])
        self._trial.load_state_dict(state.get(_TRIAL, {}))
