"""Gradients that something predicts: always, until late ones take over, or beside the true ones.

Synthetic gradients: Jaderberg et al. 2016, arXiv 1608.05343, sections 2 and 3; the lag between
activation and true gradient is fixed here, so that a run does not depend on its links' timing.
"""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from dnic.runtime.answers import Answers
from dnic.runtime.crossing import Returns, warmup_steps
from dnic.runtime.links import Count, Receiver
from dnic.runtime.microbatches import Returned
from dnic.runtime.options import Mode
from dnic.runtime.plan import InterfacePlan
from dnic.runtime.predictor import Predictor
from dnic.runtime.replicas import Replicas
from dnic.runtime.setting import Setting, build_predictor, learnt, weighed
from dnic.runtime.sources import ExactSource, GradientSource, Sent, StaleSource
from dnic.runtime.supervision import Supervision


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
            self._due.append((sent.kept(), gradients))
            return _copies(gradients)
        if not self.predictor.needs_gradients:
            sent = sent.kept()
            self._at_hand.append(sent)
        elif returns:
            self._pending.append(sent.kept())
        if self._supervised.regime == "none":
            return [torch.zeros_like(tensor) for tensor in sent.tensors]
        return _predicted(self.predictor, sent)

    def pass_by(self, sent: Sent) -> None:
        """Notes that a true gradient will come all the same, and when."""
        if sent.step in self.returns:
            self._pending.append(sent.kept())

    def take(self, step: int, version: int) -> None:
        """Waits for the gradient of the batch `window` steps ago."""
        while self._pending and self._pending[0].step <= step - self._window:
            self._due.append((self._pending.popleft(), self._returned.receive()))
        if self._due:
            self.statistics.late(version - self._due[0][0].version)

    def learn(self) -> None:
        """One step of learning from what `take` got, and one from the batch at hand."""
        if self._due:
            parts = [sent.returned(given) for sent, given in self._due]
            self._learn(parts, self._due[0][0])
        if self._at_hand:  # another batch, where a step without an update was passed by
            parts = [sent.returned(None) for sent in self._at_hand]
            self._learn(parts, self._at_hand[0])
        for _ in self._due:
            self._returned.release()
        self._due.clear()
        self._at_hand.clear()

    def _learn(self, parts: list[Returned], of: Sent) -> None:
        if not self._supervised.learns():
            return
        figures = learnt(self.predictor, self.plan, parts, of.weight)
        if figures is not None:
            self._supervised.learnt(figures, of.weight, of.step)
            self.statistics.add(figures)
        elif parts[0].gradients is not None:
            self._supervised.untold()

    def drain(self, version: int) -> None:
        """Takes the gradients of the last `window` batches, in order."""
        while self._pending:
            self.take(self._pending[0].step + self._window, version)
            self.learn()

    def state_dict(self) -> dict[str, Any]:
        """The predictor's state; marked with its kind where that is not `synthetic`."""
        state, kind = self.predictor.state_dict(), self.plan.gradient
        return state if kind == "synthetic" or not state else {_mark(kind): state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the state of another kind is left alone."""
        if self.plan.gradient == "synthetic":
            self.predictor.load_state_dict(state)
        elif _mark(self.plan.gradient) in state:
            self.predictor.load_state_dict(state[_mark(self.plan.gradient)])

    def parameters(self) -> dict[str, Tensor]:
        """The predictor's parameters, by its names for them."""
        return self.predictor.parameters()


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
        sent = sent.kept()
        _predicted(self.predictor, sent)
        self._pending.append(sent)
        self._true.append(self._returned.receive())
        return _copies(self._true[-1])

    def take(self, step: int, version: int) -> None:
        """Takes the gradient of the step before."""
        while self._pending and self._pending[0].step < step:
            self._due.append((self._pending.popleft(), self._true.popleft()))
        if self._due:
            self.statistics.late(version - self._due[0][0].version)


class PredictedStartSource(StaleSource):
    """Predicts while it warms up, then waits for true gradients that are late.

    What predicts needs no true gradients, and none come back of the batches that it predicts. It
    learns from each of them, one in `train_every` steps.
    """

    def __init__(
        self, plan: InterfacePlan, returned: Receiver, predictor: Predictor, *, seed: int = 0
    ) -> None:
        super().__init__(plan, returned)
        self.predictor = predictor
        self._seed = seed
        self._steps = 0
        self._returns = Returns()
        self._at_hand: list[Sent] = []

    def expect(self, total_steps: int) -> None:
        """Takes over how long the run is."""
        super().expect(total_steps)
        self._steps = warmup_steps(self.plan, total_steps)
        self._returns = self.answers.returns = Returns.of(self.plan, total_steps, self._seed)

    def begin(self, count: Count, step: int, microbatches: int) -> None:
        """Posts the receives of an epoch: of those gradients that are sent."""
        super().begin(self._returns.count(step, count), step, microbatches)

    def turn(self, step: int, version: int) -> bool:
        """Whether the true gradient is awaited."""
        return step >= self._steps

    def gradient(self, sent: Sent) -> list[Tensor]:
        """Predicted gradients while it warms up; then the true ones, valid until `take`."""
        if sent.step >= self._steps:
            return super().gradient(sent)
        if self.plan.learns_at_first(sent.step):
            self._at_hand.append(sent.kept())
        return _predicted(self.predictor, sent)

    def take(self, step: int, version: int) -> None:
        """Counts the gradients, where there are any."""
        if self._held:
            super().take(step, version)

    def learn(self) -> None:
        """One step of learning from the batch at hand."""
        if self._at_hand:
            parts = [sent.returned(None) for sent in self._at_hand]
            learnt(self.predictor, self.plan, parts, self._at_hand[0].weight)
            self._at_hand.clear()

    def state_dict(self) -> dict[str, Any]:
        """The predictor's state, marked with its kind."""
        return {_mark(self.plan.predictor): self.predictor.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned; the state of another kind is left alone."""
        if _mark(self.plan.predictor) in state:
            self.predictor.load_state_dict(state[_mark(self.plan.predictor)])

    def parameters(self) -> dict[str, Tensor]:
        """The predictor's parameters, by its names for them."""
        return self.predictor.parameters()


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
    elif plan.predicted_at_first:
        predictor = build_predictor(plan, setting)
        source = PredictedStartSource(plan, returned, predictor, seed=setting.seed)
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


def _mark(kind: str) -> str:
    return f"({kind})"  # no tensor is called so


def _predicted(predictor: Predictor, sent: Sent) -> list[Tensor]:
    predictor.context = sent.context
    predicted = predictor.predict(sent.tensors, sent.target, sent.microbatches)
    return weighed(predicted, sent.weight)


def _copies(gradients: list[Tensor]) -> list[Tensor]:
    """What a backward pass may have, where the heads need the gradients as they are afterwards.

    Autograd may make a parameter's gradient a view of them, to which more is added.
    """
    return [gradient.clone() for gradient in gradients]
