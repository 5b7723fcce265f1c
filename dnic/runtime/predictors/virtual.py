"""`virtual`: the gradient of a small tail's loss, trained to match the true one.

Virtual forward-backward networks (Miyato et al. 2017): where a head maps an activation and its
target to a gradient directly, here a small network stands for what follows, and its own backward
pass yields the gradient. It has the form of a gradient from the start: no difference between what
the tail says and what it should say, no gradient. Learning differentiates that backward pass once
more:

    phi <- phi - lr * Adam(d/dphi ( || s * r - u ||^2 + task * loss(tail(h), target) ))

r is the tail's gradient of a single sample's loss and u the true one, in units of its running root
mean square; s is the running least-squares fit (`dnic.runtime.tail_scale`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor

from dnic.runtime.predictor import PredictionStatistics
from dnic.runtime.registry import PredictorRequest, predictor_kind, register
from dnic.runtime.tail_options import TailOptions
from dnic.runtime.tail_scale import compared
from dnic.runtime.tail_training import Seen, TailPredictor

_LOSS_MOMENTUM = 0.1


@register("virtual", options={"task": 1.0, "targets": "auto", "loss": "auto"})
class Virtual(TailPredictor):
    """A tail that learns from true gradients, late as they are.

    Args:
        request: what for.

    Raises:
        RuntimeFault: no such tail can be built.
    """

    needs_gradients: ClassVar[bool] = True

    def __init__(self, request: PredictorRequest) -> None:
        options = predictor_kind("virtual").options_of(request.head)
        super().__init__(request, TailOptions.read(options))
        # The model's own loss may be in any units.
        self._loss_scale = torch.zeros((), device=request.device)

    def predict(self, tensors: list[Tensor], target: Tensor, microbatches: int) -> list[Tensor]:
        """The tail's gradient times the fit; zero until it has learnt."""
        leaves = self.leaves(tensors)
        with torch.enable_grad():
            loss = self.scored(leaves, target, microbatches)
        gradients = torch.autograd.grad(loss, leaves)
        factors = [fit.factor / microbatches for fit in self.fits]
        return self.back(gradients, tensors, factors)

    def learn(
        self, tensors: list[Tensor], target: Tensor, gradients: list[Tensor] | None
    ) -> PredictionStatistics | None:
        """One step on a batch whose true gradient has arrived, or on its part of it."""
        if gradients is None:
            return None
        seen = self.seen(tensors, target, gradients)
        assert seen.true is not None  # gradients were given
        self.observe(seen)
        with torch.enable_grad():
            loss = self.tail(seen.fronts, seen.target)
            found = torch.autograd.grad(loss, seen.fronts, create_graph=True)
            rows = zip(found, seen.factors, seen.true, strict=True)
            own = self.of_batch([r.to(u.dtype) * n for r, n, u in rows], seen.average)
        pairs = list(zip(self.fits, [r.detach() for r in own], seen.true, strict=True))
        predicted = [(r * fit.factor, true) for fit, r, true in pairs]
        for fit, r, true in pairs:
            fit.observe(r, true, 1 / self.steps, seen.average)
        units = [fit.unit for fit in self.fits]
        figures = compared(predicted, units)
        with torch.enable_grad():
            total = self._match(own, seen.true, units) + self._task(loss, seen)
        self.step(torch.autograd.grad(total, self.parameters_in_order, allow_unused=True))
        return figures

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        return super().state_dict() | {"loss_scale": self._loss_scale}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on bit for bit where `state_dict` was called."""
        super().load_state_dict(state)
        self._loss_scale.copy_(state.get("loss_scale", self._loss_scale))

    def _match(self, own: list[Tensor], true: list[Tensor], units: list[Tensor]) -> Tensor:
        errors = [
            ((r * fit.learning_factor - u) * unit).square().mean()
            for fit, r, u, unit in zip(self.fits, own, true, units, strict=True)
        ]
        return torch.stack(errors).mean()

    def _task(self, loss: Tensor, seen: Seen) -> Tensor:
        if self.options.loss == "model":
            size = loss.detach().abs().to(self._loss_scale.dtype)
            size = size if seen.average is None else seen.average(size)
            self._loss_scale.lerp_(size, max(1 / self.steps, _LOSS_MOMENTUM))
            loss = loss / self._loss_scale.clamp(min=torch.finfo(torch.float32).tiny)
        return self.options.task * loss
