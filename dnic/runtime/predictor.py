"""What yields a gradient before the true one is there: one predictor for an interface.

Synthetic gradients, virtual tails, local losses and whatever else somebody registers
(`dnic.runtime.registry`) have this in common; the engine, the reference and the cost model know no
more of them. A predictor predicts for every microbatch and learns once a step, on a whole batch,
late or at hand. It draws from no global random state, and keeps everything that its next
prediction depends on in `state_dict`.

Waiting for the true gradient is not predicting: see `dnic.runtime.sources`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from dnic.runtime.guard import LEAST_AT_FIRST, LEAST_EXPLAINED, LEAST_OF_POSITIONS
from dnic.runtime.plan import HeadPlan, TensorSpec


@dataclass(frozen=True)
class PredictionStatistics:
    """Predicted against true gradient of one batch, before the step that learns from it.

    Tensors without axes, so that nothing waits for the device; means over an interface's tensors.

    Attributes:
        cosine: of the angle between the two, over the whole batch; 0 when one of them is zero.
        norm_ratio: norm of the predicted gradient over that of the true one.
        loss: mean squared error in units of the true gradient's running mean square; 1 is no
            better than predicting zero.
        zero: what predicting zero has, in the same units; 1 if gradients are much of one size.
    """

    cosine: Tensor
    norm_ratio: Tensor
    loss: Tensor
    zero: Tensor | float = 1.0


class Predictor(ABC):
    """Predicts the gradients of all differentiable tensors of one interface.

    Attributes:
        needs_gradients: whether true gradients must come back once it has warmed up.
        warms_up: whether a run with `warmup_steps: auto` begins with the true gradients.
        needs_target: whether it cannot do without targets.
        replicated: whether replicas of a stage learn together. Each has a copy and is given its
            share of every batch: what is a mean over the batch is averaged (`Replicas.weighed` of
            `weight`, `dnic.runtime.replicas`) before it is used, by all of them at once, and what
            is drawn does not depend on the share. So the copies stay equal bit for bit.
        weight: of this replica's share of the batch that is learnt from next; without replicas 1.
        context: the tensors that the spec names beside the targets, of what is predicted for, or
            learnt from, next: detached, in the order of `PredictorRequest.context`.
    """

    needs_gradients: ClassVar[bool] = True
    warms_up: ClassVar[bool] = True
    needs_target: ClassVar[bool] = True
    replicated: ClassVar[bool] = False
    weight: float = 1.0
    context: Sequence[Tensor] = ()

    @classmethod
    def least_explained(cls, head: HeadPlan, tensors: Sequence[TensorSpec]) -> float:
        """Part of the true gradient's variance below which a guard stops a stage that follows.

        More where one of the tensors has positions (maps, sequences): there a prediction that knows
        of the task only what true gradients tell does harm at shares at which it helps a vector.

        Args:
            head: the options that the predictor is built with.
            tensors: whose gradients are predicted.
        """
        vectors = all(len(spec.shape) <= 2 for spec in tensors)
        return LEAST_EXPLAINED if vectors else LEAST_OF_POSITIONS

    @classmethod
    def least_at_first(cls, head: HeadPlan, tensors: Sequence[TensorSpec]) -> float:
        """The same before a stage follows, and while it has just begun to."""
        return min(LEAST_AT_FIRST, cls.least_explained(head, tensors))

    @abstractmethod
    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        """Gradients of the batch's mean loss, each of its tensor's shape and dtype.

        Args:
            tensors: what crossed, detached, in the plan's order.
            target: the same samples' targets.
            microbatches: of the batch; `tensors` are of one of them.

        Raises:
            RuntimeFault: tensors or targets are not what it was built for.
        """

    @abstractmethod
    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        """One step of learning; at most one for each batch.

        Args:
            tensors: what crossed, as it was when sent; a whole batch.
            target: the same batch's targets.
            gradients: the true ones, of the batch's mean loss; not to be changed. None where none
                come back, which happens only without `needs_gradients`.

        Returns:
            How the prediction did; None where there is nothing to compare it with.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything that later predictions depend on: tensors, numbers, mappings of them."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on bit for bit where `state_dict` was called; what has no entry starts anew."""

    @abstractmethod
    def parameters(self) -> dict[str, Tensor]:
        """What is learnt, by `<tensor>.<name>`, or by a name of the predictor's own."""
