"""Predicting with a tail, and training it: what `virtual` and `local` have in common.

    predict:  ghat = d loss(tail(h), target) / d h, of a batch or a microbatch of it
    learn:    Adam on the tail's parameters, once a step

All gradients are compared as those of single samples' losses, in units of the true one's running
root mean square: no learning rate depends on the batch or on the model's loss. The tail's forward
is computed again when it learns, and it may learn from a part of each batch, as heads do
(`dnic.runtime.head_training`). Nothing here waits for the device. Tails of replicas are not
averaged.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from dnic.runtime.head_training import INPUT_MOMENTUM
from dnic.runtime.predictor import PredictionStatistics, Predictor
from dnic.runtime.registry import PredictorRequest
from dnic.runtime.tail import build_tail
from dnic.runtime.tail_options import TailOptions
from dnic.runtime.tail_sampled import SampledEnding
from dnic.runtime.tail_scale import RunningFit

_LEAST_RATE = 1e-30  # `SparseAdam` refuses 0
_STATE = "tail"


@dataclass(frozen=True)
class Seen:
    """What a tail learns from in one step: a batch, or a part of it.

    Attributes:
        fronts: the tensors, samples first; leaves.
        target: of the same samples.
        factors: what turns a gradient of the mean loss over `target` into one of single samples'.
        true: the true gradients of single samples' losses; None where none came back.
    """

    fronts: list[Tensor]
    target: Tensor
    factors: list[int]
    true: list[Tensor] | None


class TailPredictor(Predictor):
    """A tail with its own Adam. Deterministic.

    Its gradient leads down a loss of its own, and is of use long before it explains anything of the
    true one: features follow the tail, and both come to agree. Only what points the other way is
    none.

    Args:
        request: what for.
        options: of the tail.

    Raises:
        RuntimeFault: no such tail can be built.
    """

    least_explained: ClassVar[float] = -0.1

    def __init__(self, request: PredictorRequest, options: TailOptions) -> None:
        self.options = options
        self.tail = build_tail(request, options).to(request.device)
        self._names = [tensor.name for tensor in request.tensors]
        self._one_in = request.head.one_in
        sparse = []
        self._generator: torch.Generator | None = None
        if isinstance(self.tail.ending, SampledEnding):
            sparse = [self.tail.ending.weight]
            self._generator = self.tail.ending.generator
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

    @abstractmethod
    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        """See `Predictor`."""

    @abstractmethod
    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        """See `Predictor`."""

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
        true = None
        if gradients is not None:
            dtype = self._all[0].dtype
            true = [
                reading.front(gradient.detach()).to(dtype) * (samples if reading.follows else 1)
                for reading, gradient in zip(readings, gradients, strict=True)
            ]
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
        return Seen(
            [front.detach().requires_grad_() for front in fronts],
            target,
            [end - begin if reading.follows else 1 for reading in readings],
            true,
        )

    def observe(self, seen: Seen) -> None:
        """Moves the running statistics of what is read."""
        self.tail.observe(
            [front.detach() for front in seen.fronts],
            seen.target,
            max(1 / self.steps, INPUT_MOMENTUM),
        )

    def _block(self, samples: int) -> tuple[int, int]:
        """The samples that are learnt from: blocks, in turns; all of what cannot be divided."""
        follow = all(reading.follows for reading in self.tail.readings)
        if self._one_in == 1 or samples < self._one_in or not follow:
            return 0, samples
        block = (self.steps + 1) % self._one_in
        return samples * block // self._one_in, samples * (block + 1) // self._one_in

    def step(self, gradients: Sequence[Tensor | None]) -> None:
        """Adam's step with gradients of all of `parameters_in_order`."""
        for parameter, gradient in zip(self._all, gradients, strict=True):
            parameter.grad = gradient
        for optimizer in self._optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    @property
    def parameters_in_order(self) -> list[Tensor]:
        """What learns; sparse ones last."""
        return list(self._all)

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on: tail, optimizers, scales, draws, steps."""
        state: dict[str, Any] = {
            _STATE: self.tail.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "fits": {n: fit.products for n, fit in zip(self._names, self.fits, strict=True)},
            "steps": self.steps,
        }
        if self._generator is not None:
            state["random"] = self._generator.get_state()
        return state

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
        if self._generator is not None:
            self._generator.set_state(state["random"].cpu())

    def parameters(self) -> dict[str, Tensor]:
        """Parameters of the tail by `tail.<name>`."""
        return {f"tail.{name}": parameter for name, parameter in self.tail.named_parameters()}
