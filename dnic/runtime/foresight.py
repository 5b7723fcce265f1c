"""The weights that a late stage expects to have when a batch comes back.

A stage that is late by L goes forward with weights that have made L updates more when the batch's
gradient is applied. SpecTrain (Chen et al. 2018, arXiv 1809.02839) lets it go forward, and back,
with weights that it predicts: those of now, moved L times as the optimizer's momentum would move
them next,

    SGD          W - L * lr * buf
    Adam, AdamW  W - L * lr * m / (sqrt(v) + eps), both without bias; AdamW's decay beside it

so that the gradient is, as far as momentum tells, that of the weights it is applied to. Before an
optimizer's first step nothing is predicted. Other optimizers have no such momentum, or keep it
elsewhere; parameters that another stage owns are left as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault


def foreseeable(name: str, options: Mapping[str, Any]) -> bool:
    """Whether the weights of an optimizer can be predicted.

    Args:
        name: of its class in `torch.optim`.
        options: its keyword arguments, or one of its groups of parameters.
    """
    return name in ("Adam", "AdamW") or (name == "SGD" and bool(options.get("momentum")))


class Foresight:
    """Predicts the weights of one stage.

    Args:
        module: the stage.
        optimizer: of its parameters.

    Raises:
        RuntimeFault: the optimizer is none that can be foreseen.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self._named = dict(module.named_parameters())
        self._optimizer = optimizer
        name = type(optimizer).__name__
        if not all(foreseeable(name, group) for group in optimizer.param_groups):
            still = " without momentum" if name == "SGD" else ""
            raise RuntimeFault(
                f"the weights of {name}{still} cannot be predicted",
                where="plan.yaml: interfaces: predict_weights",
                expected="SGD with momentum, Adam or AdamW",
                hint="predict_weights: false",
            )

    @torch.no_grad()
    def weights(self, updates: int) -> dict[str, Tensor]:
        """The weights after so many more updates, by name; those that nothing is known of left out.

        Args:
            updates: that are made before the one that a batch of now is for.
        """
        if not updates:
            return {}
        groups = {id(p): group for group in self._optimizer.param_groups for p in group["params"]}
        found = {}
        for name, parameter in self._named.items():
            state = self._optimizer.state.get(parameter)
            if state and parameter.requires_grad and id(parameter) in groups:
                moved = self._moved(parameter.detach(), groups[id(parameter)], state, updates)
                if moved is not None:
                    found[name] = moved
        return found

    def _moved(
        self, weight: Tensor, group: Mapping[str, Any], state: Mapping[str, Any], updates: int
    ) -> Tensor | None:
        far = updates * group["lr"]
        if isinstance(self._optimizer, torch.optim.SGD):
            momentum = state.get("momentum_buffer")
            return None if momentum is None else weight - far * momentum
        first, second = group["betas"]
        step = state["step"]
        square = state["max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"]
        # Both without bias, which is a number: as few passes over the weights as there can be.
        unbiased = (1 - second**step) ** 0.5
        root = square.sqrt().add_(group["eps"] * unbiased)
        move: Tensor = (state["exp_avg"] / root).mul_(-far * unbiased / (1 - first**step))
        if isinstance(self._optimizer, torch.optim.AdamW):
            kept = (1 - group["lr"] * group["weight_decay"]) ** updates
            return move.add_(weight, alpha=kept)
        return move.add_(weight)
