"""Where the gradient at an interface comes from: awaited, predicted, or both.

One object for each interface that a stage sends differentiable tensors over. The engine calls
`turn` at the start of every step; `gradient` before the backward pass of every microbatch (in a
step without update `pass_by`); in every step `take` (before the update) and `learn` (after it); at
the end of an epoch `drain`. Predictors (`dnic.runtime.predictor`) predict for each microbatch and
learn once a step, on the whole batch: what they learn, and how fast, does not depend on how batches
are cut. `torch.distributed.pipelining` knows only awaited gradients.

Synthetic gradients: Jaderberg et al. 2016, arXiv 1608.05343, sections 2 and 3; the lag between
activation and true gradient is fixed here, so that a run does not depend on its links' timing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dnic.runtime.answers import Answers
from dnic.runtime.crossing import Returns
from dnic.runtime.crossing import warmup_steps as warmup_steps
from dnic.runtime.links import Count, Receiver
from dnic.runtime.microbatches import Returned, whole
from dnic.runtime.options import Mode
from dnic.runtime.plan import InterfacePlan
from dnic.runtime.predictor import Predictor
from dnic.runtime.replicas import Replicas
from dnic.runtime.setting import Setting, build_predictor, weighed
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
    """

    step: int
    version: int
    tensors: list[Tensor]
    target: Tensor
    microbatches: int = 1
    weight: float = 1.0


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


class PredictedSource(GradientSource):
    """Predicts the gradient; the true one arrives `window` steps later and trains the predictor.

    During the first batches of a run, and where its guard says so, it waits like `ExactSource`, and
    the predictor learns in the same step. Else the gradients of those batches arrive that `returns`
    names; no others are sent. A predictor that needs none learns from the batch at hand.

    Args:
        late: batches by which the stage above is late itself.
        seed: of the run.
        replicas: of the stage, whose guards decide together.
    """

    def __init__(
        self,
        plan: InterfacePlan,
        returned: Receiver,
        predictor: Predictor,
        *,
        late: int = 0,
        seed: int = 0,
        replicas: Replicas | None = None,
    ) -> None:
        super().__init__(plan, returned)
        self.kind = plan.gradient
        self.returns = Returns(plan.return_every)
        self.supervision = self._supervised = Supervision(plan, replicas)
        self._seed = seed
        self.predictor = predictor
        self._window = plan.window + late
        self._pending: deque[Sent] = deque()
        self._due: list[tuple[Sent, list[Tensor]]] = []  # the microbatches of one step
        self._at_hand: list[Sent] = []  # the same, of predictors that learn without gradients

    def expect(self, total_steps: int) -> None:
        """Takes over how long the run is."""
        super().expect(total_steps)
        self.returns = self.answers.returns = Returns.of(self.plan, total_steps, self._seed)

    def begin(self, count: Count, step: int, microbatches: int) -> None:
        """Posts the receives of an epoch: of those gradients that are sent."""
        super().begin(self.returns.count(step, count), step, microbatches)

    def turn(self, step: int, version: int) -> bool:
        """Whether the true gradients are awaited; then those that are under way come first."""
        awaits = self._supervised.turn(step)
        if awaits:
            self.drain(version)
        return awaits

    def gradient(self, sent: Sent) -> list[Tensor]:
        """Predicted gradients; the true ones while it waits for them."""
        returns = sent.step in self.returns
        if returns and self._supervised.awaits:
            gradients = self._returned.receive()
            self._due.append((replace(sent, target=sent.target.clone()), gradients))
            return _copies(gradients)
        if not self.predictor.needs_gradients:
            sent = replace(sent, target=sent.target.clone())
            self._at_hand.append(sent)
        elif returns:
            self._pending.append(replace(sent, target=sent.target.clone()))
        if self._supervised.regime == "none":
            return [torch.zeros_like(tensor) for tensor in sent.tensors]
        return self._predict(sent)

    def pass_by(self, sent: Sent) -> None:
        """Notes that a true gradient will come all the same, and when."""
        if sent.step in self.returns:
            self._pending.append(replace(sent, target=sent.target.clone()))

    def take(self, step: int, version: int) -> None:
        """Waits for the gradient of the batch `window` steps ago."""
        while self._pending and self._pending[0].step <= step - self._window:
            self._due.append((self._pending.popleft(), self._returned.receive()))
        if self._due:
            self.statistics.late(version - self._due[0][0].version)

    def learn(self) -> None:
        """One step of learning from what `take` got, and one from the batch at hand."""
        if self._due:
            parts = [Returned(sent.tensors, sent.target, given) for sent, given in self._due]
            self._learn(parts, self._due[0][0])
        if self._at_hand:  # another batch, where a step without an update was passed by
            parts = [Returned(sent.tensors, sent.target, None) for sent in self._at_hand]
            self._learn(parts, self._at_hand[0])
        for _ in self._due:
            self._returned.release()
        self._due.clear()
        self._at_hand.clear()

    def _learn(self, parts: list[Returned], of: Sent) -> None:
        if not self._supervised.learns():
            return
        batch = whole(self.plan.differentiable, parts)
        self.predictor.weight = of.weight
        figures = self.predictor.learn(batch.tensors, batch.target, batch.gradients)
        if figures is not None:
            self._supervised.learnt(figures, of.weight, of.step)
            self.statistics.add(figures)
        elif batch.gradients is not None:
            self._supervised.untold()

    def drain(self, version: int) -> None:
        """Takes the gradients of the last `window` batches, in order."""
        while self._pending:
            self.take(self._pending[0].step + self._window, version)
            self.learn()

    def state_dict(self) -> dict[str, Any]:
        """The predictor's state; marked with its kind where that is not `synthetic`."""
        state = self.predictor.state_dict()
        return state if self.plan.gradient == "synthetic" or not state else {self._mark: state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the state of another kind is left alone."""
        if self.plan.gradient == "synthetic":
            self.predictor.load_state_dict(state)
        elif self._mark in state:
            self.predictor.load_state_dict(state[self._mark])

    def parameters(self) -> dict[str, Tensor]:
        """The predictor's parameters, by its names for them."""
        return self.predictor.parameters()

    @property
    def _mark(self) -> str:
        return f"({self.plan.gradient})"  # no tensor is called so

    def _predict(self, sent: Sent) -> list[Tensor]:
        return weighed(
            self.predictor.predict(sent.tensors, sent.target, sent.microbatches), sent.weight
        )


class OracleSource(PredictedSource):
    """Predicts and learns one step late, but the stage is given the true gradient.

    The third rung of the proof ladder: with the machinery of a predicted interface at window 1,
    training must equal exact training bit for bit.
    """

    def __init__(self, plan: InterfacePlan, returned: Receiver, predictor: Predictor) -> None:
        super().__init__(plan, returned, predictor)
        self.kind = "oracle"
        self._true: deque[list[Tensor]] = deque()

    def turn(self, step: int, version: int) -> bool:
        """The true gradients are awaited; those of the step before are here already."""
        return True

    def gradient(self, sent: Sent) -> list[Tensor]:
        """The true gradients; the predicted ones are computed and dropped."""
        sent = replace(sent, target=sent.target.clone())
        self._predict(sent)
        self._pending.append(sent)
        self._true.append(self._returned.receive())
        return _copies(self._true[-1])

    def take(self, step: int, version: int) -> None:
        """Takes the gradient of the step before."""
        while self._pending and self._pending[0].step < step:
            self._due.append((self._pending.popleft(), self._true.popleft()))
        if self._due:
            self.statistics.late(version - self._due[0][0].version)


def _copies(gradients: list[Tensor]) -> list[Tensor]:
    """What a backward pass may have, where the heads need the gradients as they are afterwards.

    Autograd may make a parameter's gradient a view of them, to which more is added.
    """
    return [gradient.clone() for gradient in gradients]


def build_source(
    plan: InterfacePlan, returned: Receiver, mode: Mode, setting: Setting, late: int = 0
) -> GradientSource:
    """The source of an interface.

    Args:
        plan: the interface as it is in this mode (`dnic.runtime.crossing`).
        returned: where its true gradients arrive.
        mode: of the run.
        setting: what predictors are built with.
        late: batches by which the stage above is late.

    Raises:
        RuntimeFault: no such predictor can be built for this interface.
    """
    source: GradientSource
    if plan.gradient == "exact":
        source = ExactSource(plan, returned)
    elif plan.gradient == "stale":
        source = StaleSource(plan, returned)
    else:
        predictor = build_predictor(plan, setting)
        if mode == "oracle":
            source = OracleSource(plan, returned, predictor)
        else:
            given, seed = (plan, returned, predictor), setting.seed
            source = PredictedSource(*given, late=late, seed=seed, replicas=setting.replicas)
    source.answers = Answers(returned, late)
    return source
