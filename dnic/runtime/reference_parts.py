"""What the single-process reference is made of: batches on their way, interfaces, stages, ties."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dnic.runtime.crossing import Returns, rounded
from dnic.runtime.lr import LearningRate
from dnic.runtime.microbatches import Returned, whole
from dnic.runtime.plan import InterfacePlan, TensorSpec
from dnic.runtime.seeds import random_state, restore_random_state
from dnic.runtime.shared import Channel, take_gradient

if TYPE_CHECKING:
    from dnic.runtime.head_training import HeadTrainer


@dataclass
class PassingBatch:
    """A batch, or one of `number` microbatches of it, on its way through all stages.

    Every tensor that crosses, and of each stage inputs and weights.
    """

    step: int
    taken: list[Tensor]  # by the first stage
    target: Tensor
    number: int = 1
    values: dict[str, Tensor] = field(default_factory=dict)  # with their stages' graphs
    given: list[dict[Any, Tensor]] = field(default_factory=list)  # leaves
    weights: list[dict[str, Tensor]] = field(default_factory=list)  # of late stages
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))

    def true(self, interface: InterfacePlan) -> list[Tensor]:
        """The gradients that come back over an interface, once the stage above has gone back."""
        leaves = [self.given[interface.to][spec.name] for spec in interface.differentiable]
        return [
            rounded(_gradient(leaf), spec)
            for leaf, spec in zip(leaves, interface.differentiable, strict=True)
        ]


@dataclass
class ReferenceInterface:
    """An interface with its heads, and the batches whose true gradient is not due yet."""

    plan: InterfacePlan
    oracle: bool
    window: int
    heads: list[HeadTrainer]
    returns: Returns = field(default_factory=Returns)
    waiting: deque[PassingBatch] = field(default_factory=deque)
    learnt: deque[Any] = field(default_factory=lambda: deque(maxlen=_LATEST))  # statistics

    @property
    def names(self) -> list[str]:
        """Of the differentiable tensors."""
        return [spec.name for spec in self.plan.differentiable]

    def sent(self, batch: PassingBatch) -> list[Tensor]:
        """What crossed, without its history."""
        return [batch.values[name].detach() for name in self.names]

    def learn(self) -> None:
        """Trains the heads on the oldest batch, of which all microbatches wait."""
        step = self.waiting[0].step
        parts = []
        while self.waiting and self.waiting[0].step == step:
            part = self.waiting.popleft()
            parts.append(Returned(self.sent(part), part.target, part.true(self.plan)))
        batch = whole(self.plan.differentiable, parts)
        for head, tensor, true in zip(self.heads, batch.tensors, batch.gradients, strict=True):
            self.learnt.append(head.learn(tensor, batch.target, true))


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
    random: dict[str, Any]
    open: deque[list[PassingBatch]] = field(default_factory=deque)  # forward, not yet back

    @property
    def parameters(self) -> list[nn.Parameter]:
        """Of its module."""
        return list(self.module.parameters())

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
        """Whether the holder's gradients are to be added to the owner's; asked in every step."""
        self.updates += 1
        return self.updates > self.channel.lag and bool(self.waiting)

    def take(self) -> None:
        """Adds the oldest of the holder's gradients to the owner's."""
        for (own, _), gradient in zip(self._both(), self.waiting.popleft(), strict=True):
            own.grad = gradient if own.grad is None else own.grad + gradient

    def _both(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        stages = (self.owner, self.holder)
        return zip(*(self.channel.parameters(stage.module) for stage in stages), strict=True)


# Predictions that are remembered of an interface.
_LATEST = 100


def mean_figures(learnt: Collection[Any]) -> dict[str, float]:
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
