"""A stage as it was before it began to follow its heads, put back where that has failed.

A head's predictions tell nothing of what becomes of the features that follow them: on features that
rest even a poor head explains a quarter of the gradient, and 25 steps later nothing. Where a guard
can go back to the true gradient that costs a moment. Where it can only go on without one
(`fallback: none`), the features stay what the head has made of them, and the run ends worse than if
there had never been a head. So a head in use is on trial until it has explained in one check what
is asked of one that has grown, and meanwhile copies of the stage's parameters and of their
optimizer's state are kept. `optimizer.state_dict()` would not do: what it returns changes with the
next step.

Only where nothing else has trained the stage meanwhile: else that would be undone, too. Not kept:
buffers, which follow the features by themselves; parameters that other stages use as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnic.runtime.plan import Plan
from dnic.runtime.sharding import local
from dnic.runtime.supervision import Supervision


class Trial:
    """What is kept of one stage.

    Args:
        stage: the module.
        optimizer: of its parameters.
        plan: says which of them other stages use.
        supervisions: of the stage's interfaces to stages above; None where there is no head.
    """

    def __init__(
        self,
        stage: nn.Module,
        optimizer: torch.optim.Optimizer,
        plan: Plan,
        supervisions: Sequence[Supervision | None],
    ) -> None:
        self._stage = stage
        self._optimizer = optimizer
        self._shared = {name for row in plan.shared for name in row.names}
        self._heads = [supervision for supervision in supervisions if supervision is not None]
        self._only_heads = len(self._heads) == len(supervisions)
        self._kept: dict[str, dict[str, Any]] | None = None
        self._failed = False

    def turned(self) -> None:
        """Keeps the stage where a trial begins; called before a step's update is made."""
        tried = any(head.tried for head in self._heads)
        idle = all(head.tried or head.regime == "none" for head in self._heads)
        self._failed = self._kept is not None and idle and not tried
        if not (self._only_heads and idle):
            self._kept = None
        elif tried and self._kept is None:
            self._kept = self._now()

    def updated(self) -> None:
        """Puts back what was kept where a trial has failed; called after a step's update."""
        if self._failed and self._kept is not None:
            self._put_back(self._kept)
            self._kept = None

    def state_dict(self) -> dict[str, Any]:
        """What is kept, by the parameters' names."""
        return {} if self._kept is None else dict(self._kept)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._kept = {name: dict(row) for name, row in state.items()} or None

    def _now(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "value": local(parameter.detach()).clone(),
                "state": {
                    key: local(value).clone() if isinstance(value, Tensor) else value
                    for key, value in self._optimizer.state.get(parameter, {}).items()
                },
            }
            for name, parameter in self._own().items()
        }

    @torch.no_grad()
    def _put_back(self, kept: Mapping[str, Mapping[str, Any]]) -> None:
        for name, parameter in self._own().items():
            if name not in kept:
                continue
            local(parameter.detach()).copy_(kept[name]["value"])
            state = self._optimizer.state.get(parameter, {})
            for key in list(state):
                if key not in kept[name]["state"]:
                    del state[key]  # it had not been updated yet
                elif isinstance(state[key], Tensor):
                    local(state[key]).copy_(kept[name]["state"][key])
                else:
                    state[key] = kept[name]["state"][key]

    def _own(self) -> dict[str, nn.Parameter]:
        return {
            name: parameter
            for name, parameter in self._stage.named_parameters()
            if parameter.requires_grad and name not in self._shared
        }
