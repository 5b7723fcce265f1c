"""One cut while the model trains: its predictors, and the batches that they wait for.

A predictor with a lateness of n predicts for the batch at hand, then learns from the batch n steps
ago, as an interface with a window of n does. What needs no true gradients learns from the batch at
hand, whatever the link.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import fmean

from torch import Tensor, nn

from dnic.probe.boundaries import Crossed, gradients_before
from dnic.probe.candidates import Candidate
from dnic.probe.expected import Check, Gradients, check
from dnic.probe.figures import Compared, compare
from dnic.runtime.predictor import Predictor


@dataclass(frozen=True)
class Arrived:
    """What crossed a cut in one step, and what came back."""

    tensors: list[Tensor]
    target: Tensor
    gradients: list[Tensor]


@dataclass
class Learner:
    """A predictor of one source at one lateness.

    Attributes:
        source: its name.
        lateness: steps after which it learns from a batch; 0 where it needs no true gradients.
        predictor: the predictor.
        steps: how the predicted gradients of the tensors did, with the step.
        checks: how those of the parameters did that follow from them, of some steps.
        predict_us, learn_us: of each step.
    """

    source: str
    lateness: int
    predictor: Predictor
    steps: list[tuple[int, Compared]] = field(default_factory=list)
    checks: list[tuple[int, Check]] = field(default_factory=list)
    predict_us: list[float] = field(default_factory=list)
    learn_us: list[float] = field(default_factory=list)

    def predict(self, arrived: Arrived) -> list[Tensor]:
        """Gradients for the batch at hand."""
        started = time.perf_counter()
        predicted = self.predictor.predict(arrived.tensors, arrived.target, 1)
        self.predict_us.append(1e6 * (time.perf_counter() - started))
        return predicted

    def learn(self, history: Sequence[Arrived]) -> None:
        """One step on the batch whose turn it is; nothing before there is one.

        Args:
            history: the last batches, the one at hand last.
        """
        if self.lateness >= len(history):
            return
        due = history[-1 - self.lateness]
        started = time.perf_counter()
        gradients = due.gradients if self.predictor.needs_gradients else None
        self.predictor.learn(due.tensors, due.target, gradients)
        self.learn_us.append(1e6 * (time.perf_counter() - started))


class Site:
    """A cut and its learners.

    Args:
        cut: the cut.
        learners: what is measured there.
        model: that trains.
    """

    def __init__(self, cut: Candidate, learners: Sequence[Learner], model: nn.Module) -> None:
        self.cut = cut
        self.learners = list(learners)
        named = dict(model.named_parameters())
        self._parameters = [named[name] for name in cut.parameters]
        depth = 1 + max((learner.lateness for learner in learners), default=0)
        self._history: deque[Arrived] = deque(maxlen=depth)

    def step(self, step: int, crossed: Crossed, target: Tensor, expected: Gradients | None) -> None:
        """Predict, compare, learn; the parameters must not have been updated since.

        Args:
            step: its number.
            crossed: what crossed, with its true gradients.
            target: of the same batch.
            expected: of the parameters, to compare theirs, too; None at most steps.
        """
        if not self.learners:
            return
        arrived = Arrived(crossed.tensors(), target, crossed.true())
        self._history.append(arrived)
        right: list[Tensor | None] = []
        sought = [expected[name] for name in self.cut.parameters] if expected else []
        if expected:
            right = gradients_before(crossed, arrived.gradients, self._parameters)
        for learner in self.learners:
            predicted = learner.predict(arrived)
            learner.steps.append((step, compare(predicted, arrived.gradients)))
            if expected:
                follows = gradients_before(crossed, predicted, self._parameters)
                learner.checks.append((step, check(follows, right, sought)))
            learner.learn(self._history)


def mean_us(times: Sequence[float]) -> float:
    """Mean of the last half; 0 where there are none."""
    return fmean(times[len(times) // 2 :]) if times else 0.0
