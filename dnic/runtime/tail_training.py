"""Predicting with a tail, and training it: what `virtual` and `local` have in common.

    predict:  ghat = d loss(tail(h), target) / d h, of a batch or a microbatch of it
    learn:    Adam on the tail's parameters, once a step

All gradients are compared as those of single samples' losses, in units of the true one's running
root mean square: no learning rate depends on the batch or on the model's loss. The tail's forward
is computed again when it learns, and it may learn from a part of each batch, as heads do
(`dnic.runtime.head_training`). Nothing here waits for the device.

Tails of replicas stay copies of one another, as heads do: all that is a mean over the batch is
averaged over them before it is used. Samples of classes are drawn by the number of the batch, so
that replicas whose shares are cut into microbatches differently draw the same.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dnic.runtime.guard import LEAST_EXPLAINED
from dnic.runtime.head_training import INPUT_MOMENTUM
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.plan import HeadPlan, TensorSpec
from dnic.runtime.predictor import PredictionStatistics, Predictor
from dnic.runtime.registry import PredictorRequest
from dnic.runtime.replicas import Average, Replicas
from dnic.runtime.tail import build_tail
from dnic.runtime.tail_averaging import averaged
from dnic.runtime.tail_options import TailOptions
from dnic.runtime.tail_sampled import SampledEnding
from dnic.runtime.tail_scale import RunningFit

_LEAST_RATE = 1e-30  # `SparseAdam` refuses 0
_STATE = "tail"
# Two series of draws.
_PREDICTING, _LEARNING = 0, 1


@dataclass(frozen=True)
class Seen:
    """What a tail learns from in one step: a batch, or a part of it.

    Attributes:
        fronts: the tensors, samples first; leaves.
        target: of the same samples.
        factors: what turns a gradient of the mean loss over `target` into one of single samples'.
        true: the true gradients of single samples' losses; None where none came back.
        average: makes means over the batch of those over a replica's share; None without others.
    """

    fronts: list[Tensor]
    target: Tensor
    factors: list[int]
    true: list[Tensor] | None
    average: Average | None = None


class TailPredictor(Predictor):
    """A tail with its own Adam. Deterministic.

    Its gradient leads down a loss of its own, and is of use long before it explains anything of the
    true one: features follow the tail, and both come to agree. At first only what points the other
    way is none, and later on it need explain no more of maps and sequences than of vectors, unless
    it knows of the task only what true gradients tell (`task: 0`).

    Args:
        request: what for.
        options: of the tail.

    Raises:
        RuntimeFault: no such tail can be built.
    """

    replicated: ClassVar[bool] = True

    @classmethod
    def least_explained(cls, head: HeadPlan, tensors: Sequence[TensorSpec]) -> float:
        """As of vectors where the tail has the task's own loss to lead down."""
        task = head.options.get("task", TailOptions.task)
        return LEAST_EXPLAINED if task else super().least_explained(head, tensors)

    @classmethod
    def least_at_first(cls, head: HeadPlan, tensors: Sequence[TensorSpec]) -> float:
        """Only what points the other way is held back."""
        return -0.1

    def __init__(self, request: PredictorRequest, options: TailOptions) -> None:
        self.options = options
        self.tail = build_tail(request, options).to(request.device)
        self._names = [tensor.name for tensor in request.tensors]
        self._one_in = request.head.one_in
        self._replicas = request.replicas or Replicas()
        sparse = []
        self._sampled: SampledEnding | None = None
        if isinstance(self.tail.ending, SampledEnding):
            self._sampled = self.tail.ending
            sparse = [self._sampled.weight]
        self.dense = [p for p in self.tail.parameters() if all(p is not other for other in sparse)]
        self._all = [*self.dense, *sparse]
        lr = request.head.lr
        self._optimizers: list[torch.optim.Optimizer] = []
        if self.dense:
            self._optimizers.append(torch.optim.Adam(self.dense, lr=lr, fused=True))
        if sparse:
            self._optimizers.append(torch.optim.SparseAdam(sparse, lr=max(lr, _LEAST_RATE)))
        dtype = self._all[0].dtype
        self.fits = [RunningFit(dtype, request.device) for _ in request.tensors]
        self.steps = 0
        self._predicted = 0  # batches
        self._parts = 0  # microbatches of the next one

    @abstractmethod
    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        """See `Predictor`."""

    @abstractmethod
    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        """See `Predictor`."""

    def scored(self, leaves: Sequence[Tensor], target: Tensor, microbatches: int) -> Tensor:
        """The loss of a batch that is predicted for, or of one of its microbatches."""
        if self._sampled is not None:
            self._sampled.draw_at(_PREDICTING, self._predicted, self._parts)
        self._parts += 1
        if self._parts == microbatches:
            self._predicted, self._parts = self._predicted + 1, 0
        loss: Tensor = self.tail(leaves, target)
        return loss

    def leaves(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The tensors with their samples first, without history, ready to collect gradients."""
        return [
            reading.front(tensor.detach()).detach().requires_grad_()
            for reading, tensor in zip(self.tail.readings, tensors, strict=True)
        ]

    def back(
        self, gradients: Sequence[Tensor], like: Sequence[Tensor], factors: Sequence[Tensor | float]
    ) -> list[Tensor]:
        """Gradients of `leaves`, each times its factor, as those of the tensors themselves."""
        rows = zip(self.tail.readings, gradients, like, factors, strict=True)
        return [
            reading.back((gradient * factor).to(tensor.dtype), tensor)
            for reading, gradient, tensor, factor in rows
        ]

    def seen(
        self, tensors: Sequence[Tensor], target: Tensor, gradients: Sequence[Tensor] | None
    ) -> Seen:
        """What to learn from at this step, which is counted."""
        readings = self.tail.readings
        fronts = [
            reading.front(tensor.detach())
            for reading, tensor in zip(readings, tensors, strict=True)
        ]
        samples = target.shape[0] if target.ndim else 1
        average = self._replicas.weighed(self.weight)
        true = None
        if gradients is not None:
            dtype = self._all[0].dtype
            # A share without weight has no gradient to weigh.
            own = [
                reading.front(gradient.detach()).to(dtype)
                * ((samples if reading.follows else 1) / (self.weight or 1))
                for reading, gradient in zip(readings, gradients, strict=True)
            ]
            true = self.of_batch(own, average)
        begin, end = self._block(samples)
        if end - begin < samples:

            def part(whole: list[Tensor]) -> list[Tensor]:
                return [
                    rows[begin * reading.rows : end * reading.rows]
                    for reading, rows in zip(readings, whole, strict=True)
                ]

            fronts, target = part(fronts), target[begin:end]
            true = None if true is None else part(true)
        self.steps += 1
        if self._sampled is not None:
            self._sampled.draw_at(_LEARNING, self.steps)
        return Seen(
            [front.detach().requires_grad_() for front in fronts],
            target,
            [end - begin if reading.follows else 1 for reading in readings],
            true,
            average,
        )

    def of_batch(self, gradients: Sequence[Tensor], average: Average | None) -> list[Tensor]:
        """Gradients of single samples; for a tensor that all samples share, of the whole batch's.

        Differentiated, what the other replicas have added to the latter counts as a constant.
        """
        rows = zip(self.tail.readings, gradients, strict=True)
        if average is None:
            return list(gradients)
        return [
            gradient
            if reading.follows
            else gradient + (average(gradient.detach()) - gradient.detach())
            for reading, gradient in rows
        ]

    def observe(self, seen: Seen) -> None:
        """Moves the running statistics of what is read."""
        momentum = max(1 / self.steps, INPUT_MOMENTUM)
        fronts = [front.detach() for front in seen.fronts]
        self.tail.observe(fronts, seen.target, momentum, seen.average)

    def _block(self, samples: int) -> tuple[int, int]:
        """The samples that are learnt from: blocks, in turns; all of what cannot be divided."""
        follow = all(reading.follows for reading in self.tail.readings)
        if self._one_in == 1 or samples < self._one_in or not follow:
            return 0, samples
        block = (self.steps + 1) % self._one_in
        return samples * block // self._one_in, samples * (block + 1) // self._one_in

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Adam's step with gradients of all of `parameters_in_order`; all replicas must step."""
        # Of a cluster that no target lay in there is none, and another replica may have one.
        every = [
            torch.zeros_like(parameter) if gradient is None else gradient
            for parameter, gradient in zip(self._all, gradients, strict=True)
        ]
        gradients = averaged(every, self._replicas, self.weight)
        for parameter, gradient in zip(self._all, gradients, strict=True):
            parameter.grad = gradient
        for optimizer in self._optimizers:
            optimizer.step()
            clear_gradients(optimizer)

    @property
    def parameters_in_order(self) -> list[Tensor]:
        """What learns; sparse ones last."""
        return list(self._all)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: tail, optimizers, scales, and what counts."""
        return {
            _STATE: self.tail.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "fits": {n: fit.products for n, fit in zip(self._names, self.fits, strict=True)},
            "steps": self.steps,
            "predicted": self._predicted,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on bit for bit where `state_dict` was called."""
        if _STATE not in state:
            return
        self.tail.load_state_dict(state[_STATE])
        for optimizer, kept in zip(self._optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(kept)
        for name, fit in zip(self._names, self.fits, strict=True):
            fit.products.copy_(state["fits"][name])
        self.steps = int(state["steps"])
        self._predicted, self._parts = int(state.get("predicted", 0)), 0

    def parameters(self) -> dict[str, Tensor]:
        """Parameters of the tail by `tail.<name>`."""
        return {f"tail.{name}": parameter for name, parameter in self.tail.named_parameters()}
