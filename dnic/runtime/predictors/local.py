"""`local`: the gradient of a small tail's own loss, trained by that loss alone.

No true gradient is needed once a run has warmed up, and none is sent: what lies below learns what
its own tail needs, whatever the rest of the model would have wanted (decoupled greedy learning:
Belilovsky et al. 2020, arXiv 1901.08164; Noekland and Eidnes 2019, arXiv 1901.06656). The tail
learns from the batch at hand, so that nothing is ever late.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from dnic.runtime.predictor import PredictionStatistics
from dnic.runtime.registry import PredictorRequest, predictor_kind, register
from dnic.runtime.tail_options import TailOptions
from dnic.runtime.tail_scale import compared
from dnic.runtime.tail_training import Seen, TailPredictor


@dataclass(frozen=True)
class _Known:
    """The last batch that was predicted for, and its gradients for the tail's parameters."""

    tensors: list[Tensor]
    places: list[tuple[int, int]]
    gradients: tuple[Tensor | None, ...]


@register("local", options={"targets": "auto", "loss": "auto"})
class Local(TailPredictor):
    """A tail that learns its task.

    Args:
        request: what for.

    Raises:
        RuntimeFault: no such tail can be built.
    """

    needs_gradients: ClassVar[bool] = False
    # Features that begin with true gradients are not those that a loss of one's own goes on with.
    warms_up: ClassVar[bool] = False

    def __init__(self, request: PredictorRequest) -> None:
        options = predictor_kind("local").options_of(request.head)
        super().__init__(request, TailOptions.read(options))
        self._known: _Known | None = None

    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        """The gradient of the tail's loss.

        Where all of a batch is learnt from, the same backward pass yields the tail's gradients.
        """
        leaves = self.leaves(tensors)
        both = microbatches == 1 and self._one_in == 1
        wanted = [*leaves, *self.parameters_in_order] if both else leaves
        with torch.enable_grad():
            loss = self.scored(leaves, target, microbatches)
        gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
        found, rest = gradients[: len(leaves)], gradients[len(leaves) :]
        self._known = _Known(tensors, _places(tensors), rest) if both else None
        return self.back(found, tensors, [1 / microbatches] * len(tensors))

    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        """One step of the tail; compares where true gradients are there, while warming up."""
        known, self._known = self._known, None
        seen = self.seen(tensors, target, gradients)
        figures = None
        if gradients is None and known is not None and known.places == _places(tensors):
            self.step(known.gradients)
        else:
            figures = self._learn(seen)
        # Afterwards, as what was predicted for was read with the statistics of before.
        self.observe(seen)
        return figures

    def _learn(self, seen: Seen) -> PredictionStatistics | None:
        with torch.enable_grad():
            loss = self.tail(seen.fronts, seen.target)
        wanted = self.parameters_in_order
        if seen.true is None:
            self.step(torch.autograd.grad(loss, wanted, allow_unused=True))
            return None
        found = torch.autograd.grad(loss, [*seen.fronts, *wanted], allow_unused=True)
        self.step(found[len(seen.fronts) :])
        return self._compared(found[: len(seen.fronts)], seen.true, seen)

    def _compared(
        self, found: tuple[Tensor, ...], true: list[Tensor], seen: Seen
    ) -> PredictionStatistics:
        own = [r.to(u.dtype) * n for r, n, u in zip(found, seen.factors, true, strict=True)]
        own = self.of_batch(own, seen.average)
        for fit, r, u in zip(self.fits, own, true, strict=True):
            fit.observe(r, u, 1 / self.steps, seen.average)
        return compared(list(zip(own, true, strict=True)), [fit.unit for fit in self.fits])


def _places(tensors: list[Tensor]) -> list[tuple[int, int]]:
    """Where tensors lie and which versions they are: the same ones, while they are held."""
    return [(tensor.data_ptr(), tensor._version) for tensor in tensors]
