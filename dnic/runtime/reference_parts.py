"""What the single-process reference is made of: batches on their way, interfaces, stages, ties."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from dnic.runtime.clipping import gradient_norm, scale_gradients
from dnic.runtime.crossing import Returns, rounded
from dnic.runtime.foresight import Foresight
from dnic.runtime.lr import LearningRate
from dnic.runtime.microbatches import Returned
from dnic.runtime.plan import InterfacePlan, TensorSpec
from dnic.runtime.seeds import random_state, restore_random_state
from dnic.runtime.setting import learnt, weighed
from dnic.runtime.shared import Channel, take_gradient
from dnic.runtime.supervision import Supervision
from dnic.runtime.trial import Trial
from dnic.runtime.updates import Updates

if TYPE_CHECKING:
    from dnic.runtime.predictor import PredictionStatistics, Predictor


@dataclass
class PassingBatch:
    """A batch, or one of `number` microbatches of it, on its way through all stages.

    Every tensor that crosses, and of each stage inputs and weights.
    """

    step: int
    taken: list[Tensor]  # by the first stage
    target: Tensor
    number: int = 1
    weight: float = 1.0  # among the shares of replicas
    values: dict[str, Tensor] = field(default_factory=dict)  # with their stages' graphs
    given: list[dict[Any, Tensor]] = field(default_factory=list)  # leaves
    returned: list[dict[str, Tensor]] = field(default_factory=list)  # outputs, by stage
    weights: list[dict[str, Tensor]] = field(default_factory=list)  # of late stages
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    def gave(self, stage: ReferenceStage, output: Any) -> None:
        """What a stage returned; of what it was sent, its heads alone see anything."""
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        returned = dict(zip(stage.outputs, outputs, strict=True))
        arrived = stage.arriving.keys()
        self.returned.append(returned)
        self.values.update((n, tensor) for n, tensor in returned.items() if n not in arrived)

    def true(self, interface: InterfacePlan) -> list[Tensor]:
        """The gradients that come back over an interface, once the stage above has gone back."""
        leaves = [self.given[interface.to][spec.name] for spec in interface.differentiable]
        return [
            rounded(_gradient(leaf), spec)
            for leaf, spec in zip(leaves, interface.differentiable, strict=True)
        ]


@dataclass
class ReferenceInterface:
    """An interface with its predictor, and the batches from which that has not learnt yet."""

    plan: InterfacePlan
    oracle: bool
    window: int
    predictor: Predictor | None
    supervision: Supervision
    returns: Returns = field(default_factory=Returns)
    waiting: deque[PassingBatch] = field(default_factory=deque)
    at_hand: deque[PassingBatch] = field(default_factory=deque)  # to learn from without gradients
    awaited: int = -1  # the last step whose true gradients were awaited
    learnt: deque[PredictionStatistics] = field(default_factory=lambda: deque(maxlen=_LATEST))

    @property
    def names(self) -> list[str]:
        """Of the differentiable tensors."""
        return [spec.name for spec in self.plan.differentiable]

    def sent(self, batch: PassingBatch) -> list[Tensor]:
        """What crossed, without its history."""
        return [batch.values[name].detach() for name in self.names]

    def context(self, batch: PassingBatch) -> list[Tensor]:
        """What the predictor sees beside that."""
        returned = batch.returned[self.plan.source] if self.plan.context else {}
        return [returned[spec.name].detach() for spec in self.plan.context]

    def predicted(self, batch: PassingBatch) -> list[Tensor]:
        """What the predictor says of a batch."""
        assert self.predictor is not None  # else it was not asked
        self.predictor.context = self.context(batch)
        predicted = self.predictor.predict(self.sent(batch), batch.target, batch.number)
        return weighed(predicted, batch.weight)

    def turn(self, step: int) -> None:
        """Begins a step with an update."""
        if self.supervision.turn(step) and not self.oracle:
            while self.waiting:
                self.learn()

    def due(self, now: int) -> bool:
        """Whether the oldest batch is to be learnt from."""
        step = self.waiting[0].step
        return step == self.awaited or step <= now - self.window

    def update(self, now: int) -> None:
        """Learns from all that is due at a step."""
        while self.waiting and self.due(now):
            self.learn()
        if self.at_hand:
            self._learn(self.at_hand)

    def learn(self) -> None:
        """Trains the predictor on the oldest batch, of which all microbatches wait, if it is to."""
        self._learn(self.waiting)

    def _learn(self, batches: deque[PassingBatch]) -> None:
        step, weight = batches[0].step, batches[0].weight
        parts = []
        while batches and batches[0].step == step:
            part = batches.popleft()
            true = part.true(self.plan) if step in self.returns else None
            parts.append(Returned(self.sent(part), part.target, true, self.context(part)))
        assert self.predictor is not None  # else nothing waits
        if self._learns(step):
            figures = learnt(self.predictor, self.plan, parts, weight)
            if figures is not None:
                self.supervision.learnt(figures, weight, step)
                self.learnt.append(figures)
            elif parts[0].gradients is not None:
                self.supervision.untold()

    def _learns(self, step: int) -> bool:
        if self.plan.predicted_at_first:
            return self.plan.learns_at_first(step)
        return self.supervision.learns()


@dataclass
class ReferenceStage:
    """A stage with its optimizer, its interfaces to stages above and its random numbers."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optimizer: torch.optim.Optimizer
    learning_rate: LearningRate
    limit: float | None  # of the norm of its own gradients
    arriving: dict[str, TensorSpec]
    above: list[ReferenceInterface]
    late: int
    foresight: Foresight | None
    random: dict[str, Any]
    updates: Updates
    trial: Trial
    open: deque[list[PassingBatch]] = field(default_factory=deque)  # forward, not yet back

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of its module."""
        return list(self.module.parameters())

    def called(self, batch: PassingBatch, inputs: tuple[Tensor, ...]) -> Any:
        """What the module returns, with weights that a late stage keeps for the backward pass."""
        if not self.late:
            batch.weights.append({})
            return self.module(*inputs)
        foreseen = self.foresight.weights(len(self.open)) if self.foresight else {}
        copies = {
            name: foreseen.get(name, parameter.detach().clone()).requires_grad_(
                parameter.requires_grad
            )
            for name, parameter in self.module.named_parameters()
        }
        batch.weights.append(copies)
        return functional_call(self.module, copies, inputs)

    def update(self, now: int) -> None:
        """Update, and what the predictors learn."""
        if now in self.updates:
            self.clip()
            self.optimizer.step()
            self.trial.updated()
            self.learning_rate.updated()
        else:
            self.learning_rate.skipped()
        for interface in self.above:
            interface.update(now)

    def clip(self) -> None:
        """Clips its own gradients, where that is what the limit is of."""
        if self.limit is not None:
            norm = gradient_norm(self.parameters)
            scale_gradients(self.parameters, self.limit, norm)

    def turn(self, step: int) -> None:
        """Begins a step with an update."""
        for interface in self.above:
            interface.turn(step)
        self.trial.turned()

    def pass_by(self) -> None:
        """In place of a backward pass: true gradients come all the same, to be learnt from."""
        for batch in self.open.popleft():
            for interface in self.above:
                if batch.step in interface.returns:
                    interface.waiting.append(batch)

    @contextmanager
    def own_random_numbers(self) -> Iterator[None]:
        """Draws from the stage's own random state meanwhile."""
        restore_random_state(self.random)
        yield
        self.random = random_state()


@dataclass
class Tie:
    """An owner of parameters, a stage with copies, and gradients that are not due yet."""

    owner: ReferenceStage
    holder: ReferenceStage
    channel: Channel
    waiting: deque[list[Tensor]] = field(default_factory=deque)
    updates: int = 0

    def share(self) -> None:
        """Gives the holder the owner's values."""
        with torch.no_grad():
            for own, copy in self._both():
                copy.copy_(own)

    def give(self) -> None:
        """Keeps the holder's gradients until they are due."""
        self.waiting.append([take_gradient(copy).clone() for _, copy in self._both()])

    def due(self) -> bool:
        """Whether the holder's gradients are to be added to the owner's; asked in every update."""
        self.updates += 1
        return self.updates > self.channel.updates and bool(self.waiting)

    def take(self) -> None:
        """Adds the oldest of the holder's gradients to the owner's."""
        for (own, _), gradient in zip(self._both(), self.waiting.popleft(), strict=True):
            own.grad = gradient if own.grad is None else own.grad + gradient

    def _both(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        stages = (self.owner, self.holder)
        return zip(*(self.channel.parameters(stage.module) for stage in stages), strict=True)


# Predictions that are remembered of an interface.
_LATEST = 100


def mean_figures(learnt: Collection[PredictionStatistics]) -> dict[str, float]:
    """Means of the statistics of some predictions, of which there is at least one.

    `explained` is the share of the true gradients' squared norm that the predictions leave nothing
    of: 1 - ||predicted - true||^2 / ||true||^2, below 0 where zero would have been better.
    """
    cosine = torch.stack([figures.cosine for figures in learnt]).double()
    ratio = torch.stack([figures.norm_ratio for figures in learnt]).double()
    found = {
        "cosine": cosine,
        "norm_ratio": ratio,
        "explained": 2 * ratio * cosine - ratio.square(),
    }
    return {name: float(values.mean()) for name, values in found.items()}


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.contiguous()
