"""Where the gradient at an interface comes from: awaited here, predicted in `predicted_sources`.

One object for each interface that a stage sends differentiable tensors over. The engine calls
`turn` at the start of every step; `gradient` before the backward pass of every microbatch (in a
step without update `pass_by`); in every step `take` (before the update) and `learn` (after it); at
the end of an epoch `drain`. Predictors (`dnic.runtime.predictor`) predict for each microbatch and
learn once a step, on the whole batch: what they learn, and how fast, does not depend on how batches
are cut. `torch.distributed.pipelining` knows only awaited gradients.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from dnic.runtime.answers import Answers
from dnic.runtime.links import Count, Receiver
from dnic.runtime.microbatches import Returned
from dnic.runtime.plan import InterfacePlan
from dnic.runtime.source_statistics import SourceStatistics
from dnic.runtime.supervision import Supervision


@dataclass(frozen=True)
class Sent:
    """What a stage sent over an interface in one message.

    Attributes:
        step: global step.
        version: updates that the stage had made when it computed the tensors.
        tensors: the differentiable ones, detached.
        target: the targets, valid until the backward pass is over.
        microbatches: of the batch; the message holds one of them.
        weight: of the batch among the shares of replicas (`dnic.runtime.replicas`).
        context: what a head sees beside them.
    """

    step: int
    version: int
    tensors: list[Tensor]
    target: Tensor
    microbatches: int = 1
    weight: float = 1.0
    context: Sequence[Tensor] = ()

    def kept(self) -> Sent:
        """The same, to be learnt from when its backward pass is over."""
        return replace(self, target=self.target.clone())

    def returned(self, gradients: list[Tensor] | None) -> Returned:
        """With the true gradients that have come for it, if any have."""
        return Returned(self.tensors, self.target, gradients, self.context)


class GradientSource(ABC):
    """How one interface's gradients are obtained.

    Args:
        plan: the interface.
        returned: where the true gradients arrive, a message for each microbatch.
    """

    kind = "exact"

    def __init__(self, plan: InterfacePlan, returned: Receiver) -> None:
        self.plan = plan
        self.statistics = SourceStatistics()
        self.supervision: Supervision | None = None  # where there are heads
        self.answers = Answers(returned)  # told when all messages of a step have left
        self._returned = returned

    def begin(self, count: Count, step: int, microbatches: int) -> None:
        """Posts the receives of an epoch.

        Args:
            count: its batches.
            step: of the first of them.
            microbatches: into which each is cut, at most.
        """
        self.answers.begin()
        self._returned.begin(self.plan.differentiable, count.cut(microbatches))

    def expect(self, total_steps: int) -> None:
        """Takes over how long the run is, of which warming up may be a part."""
        if self.supervision is not None:
            self.supervision.begin(total_steps)

    def turn(self, step: int, version: int) -> bool:
        """Begins a step with an update; whether its true gradients are awaited."""
        return True

    def pass_by(self, sent: Sent) -> None:
        """In place of `gradient`, in a step in which the stage does not update."""
        raise RuntimeError("a stage that waits for gradients updates in every step")

    def figures(self) -> dict[str, Any]:
        """For the epoch's record."""
        figures = {"gradient": self.kind, "window": self.plan.window, **self.statistics.summary()}
        return figures if self.supervision is None else figures | self.supervision.figures()

    @abstractmethod
    def gradient(self, sent: Sent) -> list[Tensor]:
        """Gradients with which the stage goes on, in the order of `sent.tensors`."""

    @abstractmethod
    def take(self, step: int, version: int) -> None:
        """Takes the true gradient that is due at this step, if it is not taken already."""

    @abstractmethod
    def learn(self) -> None:
        """Trains the predictor, where there is one, with what it is to learn at this step."""

    @abstractmethod
    def drain(self, version: int) -> None:
        """Takes and learns what is still on its way at the end of an epoch."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """State of the predictor, if there is one."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; what has no entry starts anew."""

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """Parameters of the predictor, by its names for them."""


class ExactSource(GradientSource):
    """Waits for the true gradient of the same microbatch."""

    def __init__(self, plan: InterfacePlan, returned: Receiver) -> None:
        super().__init__(plan, returned)
        self._version = 0
        self._held = 0

    def gradient(self, sent: Sent) -> list[Tensor]:
        """The true gradients; valid until `take`."""
        self._version = sent.version
        self._held += 1
        return self._returned.receive()

    def take(self, step: int, version: int) -> None:
        """Counts the gradients and frees their buffers: the backward passes are over.

        Not earlier, because autograd may have made a parameter's gradient a view of a buffer. Nor
        need it be later: what comes into it next answers to what is sent after the update.
        """
        self.statistics.late(version - self._version)
        for _ in range(self._held):
            self._returned.release()
        self._held = 0

    def learn(self) -> None:
        """Nothing: there is no head."""

    def drain(self, version: int) -> None:
        """Nothing: no gradient is under way after a step."""

    def state_dict(self) -> dict[str, Any]:
        """Empty."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing to restore."""

    def parameters(self) -> dict[str, Tensor]:
        """Empty."""
        return {}


class StaleSource(ExactSource):
    """Waits for the true gradient of a batch that was sent some steps ago.

    It is given that batch, not the one at hand: a late stage (`dnic.runtime.late_engine`) goes back
    through batches in the order in which it sent them.
    """

    kind = "stale"
