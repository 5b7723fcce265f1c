"""How far a gradient is off that is used some updates late.

A `stale` interface goes on with the true gradient of a batch, computed with the weights of that
batch's own forward pass, when the weights have moved on. The gradient of the crossing tensors
cannot tell how much that matters: there is no other one of the same samples to compare it with. So
the gradient of the parameters is kept for some batches, and such a batch, with the same random
numbers, goes through the model again when its lateness has come: what would be right then, beside
what would be used. So many gradients are kept as begin within the largest lateness.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from dnic.probe.candidates import Candidate
from dnic.probe.expected import Check, Expected, Gradients, chance, gradients_now, joined
from dnic.probe.figures import Compared, compare
from dnic.runtime.inputs import Batch
from dnic.runtime.seeds import random_state

BATCHES_OF_A_RUN = 16


@dataclass
class _Kept:
    """A batch whose gradient waits to be compared."""

    step: int
    batch: Batch
    chance: dict[str, Any]
    gradients: dict[str, Tensor | None] = field(default_factory=dict)


class Staleness:
    """Compares late with timely gradients, before each cut.

    Args:
        model: that trains.
        cuts: whose parameters are looked at.
        latenesses: in updates, ascending.
        steps: of the run.
        loss_of: one forward pass of a batch, to its loss.
        expected: what both are compared with.
    """

    def __init__(
        self,
        model: nn.Module,
        cuts: Sequence[Candidate],
        latenesses: Sequence[int],
        steps: int,
        loss_of: Callable[[Batch], Tensor],
        expected: Expected,
    ) -> None:
        self._model = model
        self._cuts = cuts
        self._latenesses = latenesses
        self._loss_of = loss_of
        self._expected = expected
        self._kept: deque[_Kept] = deque()
        self._every = min(max(steps // BATCHES_OF_A_RUN, 2), latenesses[-1] + 1)
        # For each cut and lateness, in the order in which they were made, with the step.
        self.found: dict[tuple[int, int], list[tuple[int, Check]]] = {
            (cut, late): [] for cut in range(len(cuts)) for late in latenesses
        }

    def before(self, step: int, batch: Batch) -> None:
        """Called before a step's forward pass: the weights are those after `step` updates."""
        due = [kept for kept in self._kept if step - kept.step in self._latenesses]
        expected = self._expected.gradients() if due else {}
        for kept in due:
            with chance(kept.chance):
                now = gradients_now(self._model, self._loss_of, kept.batch)
            self._compare(step, step - kept.step, (kept.gradients, now, expected))
        while self._kept and step - self._kept[0].step >= self._latenesses[-1]:
            self._kept.popleft()
        if step % self._every == 0:
            self._kept.append(_Kept(step, batch, random_state()))

    def after(self, step: int) -> None:
        """Called after the step's backward pass: its gradients are in the parameters."""
        if self._kept and self._kept[-1].step == step:
            self._kept[-1].gradients = {
                name: None if parameter.grad is None else parameter.grad.clone()
                for name, parameter in self._model.named_parameters()
                if parameter.requires_grad
            }

    def _compare(
        self, step: int, lateness: int, found: tuple[Gradients, Gradients, Gradients]
    ) -> None:
        late, now, expected = found
        pairs = ((late, now), (late, expected), (now, expected))
        each = [_by_name(one, other) for one, other in pairs]
        for number, cut in enumerate(self._cuts):
            names = [name for name in cut.parameters if name in now]
            whole = [_total([compared[name] for name in names]) for compared in each]
            self.found[number, lateness].append((step, joined(*whole)))


def _by_name(one: Gradients, other: Gradients) -> Mapping[str, Compared]:
    return {name: compare([gradient], [other[name]]) for name, gradient in one.items()}


def _total(parts: Sequence[Compared]) -> Compared:
    return Compared(
        sum(part.predicted for part in parts),
        sum(part.true for part in parts),
        sum(part.product for part in parts),
    )
