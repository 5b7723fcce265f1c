"""Where the gradient at an interface comes from: awaited, predicted, or both.

One object for each interface that a stage sends differentiable tensors over. The engine calls
`gradient` before the backward pass of every microbatch; in every step `take` (before the update)
and `learn` (after it); at the end of an epoch `drain`. Predictors (`dnic.runtime.predictor`)
predict for each microbatch and learn once a step, on the whole batch: what they learn, and how
fast, does not depend on how batches are cut. `torch.distributed.pipelining` knows only awaited
gradients.

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

from dnic.runtime.crossing import Returns
from dnic.runtime.crossing import warmup_steps as warmup_steps
from dnic.runtime.links import Count, Receiver
from dnic.runtime.loss import Loss
from dnic.runtime.microbatches import Returned, whole
from dnic.runtime.options import Mode
from dnic.runtime.plan import HeadPlan, InterfacePlan, Size, TargetPlan
from dnic.runtime.predictor import Predictor
from dnic.runtime.registry import PredictorRequest, predictor_kind
from dnic.runtime.seeds import head_seed


@dataclass
class SourceStatistics:
    """Sums over the steps of an epoch.

    `cosine` and `norm_ratio` compare predicted with true gradients, averaged over an interface's
    tensors; `lateness` counts the stage's updates between computing an activation and taking its
    true gradient.
    """

    learned: int = 0
    cosine: float | Tensor = 0.0
    norm_ratio: float | Tensor = 0.0
    taken: int = 0
    lateness: int = 0
    lateness_max: int = 0

    def late(self, updates: int) -> None:
        """Counts a gradient that was taken so many updates after its activation."""
        self.taken += 1
        self.lateness += updates
        self.lateness_max = max(self.lateness_max, updates)

    def summary(self) -> dict[str, float | None]:
        """Means; None where nothing was counted."""
        return {
            "cosine": float(self.cosine) / self.learned if self.learned else None,
            "norm_ratio": float(self.norm_ratio) / self.learned if self.learned else None,
            "lateness": self.lateness / self.taken if self.taken else None,
            "lateness_max": float(self.lateness_max) if self.taken else None,
        }


@dataclass(frozen=True)
class Sent:
    """What a stage sent over an interface in one message.

    Attributes:
        step: global step.
        version: updates that the stage had made when it computed the tensors.
        tensors: the differentiable ones, detached.
        target: the targets, valid until the backward pass is over.
        microbatches: of the batch; the message holds one of them.
    """

    step: int
    version: int
    tensors: list[Tensor]
    target: Tensor
    microbatches: int = 1


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
        self._returned = returned

    def begin(self, count: Count, step: int, microbatches: int) -> None:
        """Posts the receives of an epoch.

        Args:
            count: its batches.
            step: of the first of them.
            microbatches: into which each is cut, at most.
        """
        self._returned.begin(self.plan.differentiable, count.cut(microbatches))

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

        Not earlier, because autograd may have made a parameter's gradient a view of a buffer.
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

    During the first batches of a run it waits like `ExactSource`, and the predictor learns in the
    same step. After that the gradients of those batches arrive that `returns` names; no others are
    sent. A predictor that needs none learns from the batch at hand.

    Args:
        late: batches by which the stage above is late itself.
    """

    def __init__(
        self, plan: InterfacePlan, returned: Receiver, predictor: Predictor, *, late: int = 0
    ) -> None:
        super().__init__(plan, returned)
        self.kind = plan.gradient
        self.returns = Returns(plan.return_every)
        self.predictor = predictor
        self._window = plan.window + late
        self._pending: deque[Sent] = deque()
        self._due: list[tuple[Sent, list[Tensor]]] = []  # the microbatches of one step
        self._at_hand: list[Sent] = []  # the same, of predictors that learn without gradients

    def begin(self, count: Count, step: int, microbatches: int) -> None:
        """Posts the receives of an epoch: of those gradients that are sent."""
        super().begin(self.returns.count(step, count), step, microbatches)

    def gradient(self, sent: Sent) -> list[Tensor]:
        """Predicted gradients; the true ones while warming up."""
        if sent.step < self.returns.warmup:
            gradients = self._returned.receive()
            self._due.append((replace(sent, target=sent.target.clone()), gradients))
            return _copies(gradients)
        if not self.predictor.needs_gradients:
            self._at_hand.append(replace(sent, target=sent.target.clone()))
            return self._predict(self._at_hand[-1])
        if sent.step in self.returns:
            self._pending.append(replace(sent, target=sent.target.clone()))
        return self._predict(sent)

    def take(self, step: int, version: int) -> None:
        """Waits for the gradient of the batch `window` steps ago."""
        while self._pending and self._pending[0].step <= step - self._window:
            self._due.append((self._pending.popleft(), self._returned.receive()))
        if self._due:
            self.statistics.late(version - self._due[0][0].version)

    def learn(self) -> None:
        """One step of learning from the gradients that `take` got, or from the batch at hand."""
        parts = [Returned(sent.tensors, sent.target, given) for sent, given in self._due]
        parts += [Returned(sent.tensors, sent.target, None) for sent in self._at_hand]
        if not parts:
            return
        batch = whole(self.plan.differentiable, parts)
        figures = self.predictor.learn(batch.tensors, batch.target, batch.gradients)
        if figures is not None:
            self.statistics.cosine = self.statistics.cosine + figures.cosine
            self.statistics.norm_ratio = self.statistics.norm_ratio + figures.norm_ratio
            self.statistics.learned += 1
        for _ in self._due:
            self._returned.release()
        self._due.clear()
        self._at_hand.clear()

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
        return self.predictor.predict(sent.tensors, sent.target, sent.microbatches)


class OracleSource(PredictedSource):
    """Predicts and learns one step late, but the stage is given the true gradient.

    The third rung of the proof ladder: with the machinery of a predicted interface at window 1,
    training must equal exact training bit for bit.
    """

    def __init__(self, plan: InterfacePlan, returned: Receiver, predictor: Predictor) -> None:
        super().__init__(plan, returned, predictor)
        self.kind = "oracle"
        self._true: deque[list[Tensor]] = deque()

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


@dataclass(frozen=True)
class Setting:
    """What all predictors of a run are built with.

    Attributes:
        target: what the targets are; None when nothing is known of them.
        output: planned shape of the model's output, where it is one tensor.
        loss: the model file's.
        device: where predictors live.
        seed: of the run.
    """

    target: TargetPlan | None
    output: tuple[Size, ...] | None
    loss: Loss
    device: torch.device
    seed: int


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
    if plan.gradient == "exact":
        return ExactSource(plan, returned)
    if plan.gradient == "stale":
        return StaleSource(plan, returned)
    predictor = build_predictor(plan, setting)
    if mode == "oracle":
        return OracleSource(plan, returned, predictor)
    return PredictedSource(plan, returned, predictor, late=late)


def build_predictor(plan: InterfacePlan, setting: Setting) -> Predictor:
    """What predicts the gradients of an interface.

    Raises:
        RuntimeFault: there is no such kind, or it cannot be built for this interface.
    """
    kind = predictor_kind(plan.gradient)
    tensors = range(len(plan.differentiable))
    seeds = tuple(head_seed(setting.seed, plan.source, plan.to, number) for number in tensors)
    return kind.build(
        PredictorRequest(
            tensors=plan.differentiable,
            head=plan.head or HeadPlan(),
            target=setting.target,
            loss=setting.loss,
            output=setting.output,
            device=setting.device,
            seed=seeds[0],
            seeds=seeds,
        )
    )
