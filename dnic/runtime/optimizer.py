"""Any optimizer of `torch.optim`, by name, and its step.

torch's classes tell only when they are made, or when they step, that they do not suit a model:
`Muon` takes matrices only, `SparseAdam` sparse gradients only. Here that becomes an error that
names the optimizer. `LBFGS` runs the model again within its step, which stages cannot.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault

_WHERE = "plan.yaml: train: optimizer"


def build_optimizer(
    name: str, options: Any, module: nn.Module, others: Sequence[Tensor] = ()
) -> torch.optim.Optimizer:
    """A `torch.optim` class by name, over a module's parameters but `others`.

    Raises:
        RuntimeFault: torch has no such optimizer, it takes other options or other parameters, or
            needs to run the model itself.
    """
    kind = getattr(torch.optim, name, None)
    if not (isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer)):
        raise RuntimeFault(
            f"torch.optim has no optimizer {name!r}",
            where=f"{_WHERE}: name",
            expected="AdamW, Adam, SGD, ...",
        )
    closure = inspect.signature(kind.step).parameters.get("closure")
    if closure is not None and closure.default is inspect.Parameter.empty:
        raise RuntimeFault(
            f"{name} runs the model again within its step, which a stage cannot",
            where=f"{_WHERE}: name",
            expected="AdamW, Adam, SGD, ...",
        )
    left_out = {id(other) for other in others}
    named = {n: p for n, p in module.named_parameters() if id(p) not in left_out}
    # torch's optimizers refuse an empty list; a matrix suits them all.
    parameters: list[Tensor] = list(named.values()) or [nn.Parameter(torch.empty(0, 0))]
    if name == "Muon":
        _check_matrices(named)
    try:
        return kind(parameters, **options)
    except (TypeError, ValueError) as error:
        raise RuntimeFault(
            f"{name} refuses its options: {error}", where=f"{_WHERE}: options"
        ) from error


def clear_gradients(optimizer: torch.optim.Optimizer) -> None:
    """What `zero_grad` does, in half of the time or less: it looks at every gradient first."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None


def first_step(optimizer: torch.optim.Optimizer) -> None:
    """An optimizer's first step, in which it shows whether the gradients suit it.

    Raises:
        RuntimeFault: they do not.
    """
    try:
        optimizer.step()
    except torch.OutOfMemoryError:
        raise  # its state is made now; that says nothing of the gradients
    except (RuntimeError, TypeError, ValueError, AssertionError) as error:
        raise RuntimeFault(
            f"{type(optimizer).__name__} cannot make a step with this model's gradients: {error}",
            where=f"{_WHERE}: name",
        ) from error


def _check_matrices(parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        if parameter.dim() != 2:
            raise RuntimeFault(
                f"Muon trains matrices only, and {name} has the shape {list(parameter.shape)}",
                where=f"{_WHERE}: name",
                expected="a model of matrices",
                hint="AdamW, Adam, SGD, ...",
            )
