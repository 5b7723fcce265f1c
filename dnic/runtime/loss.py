"""The loss of a batch: what `loss(output, target)` gives, or what the model itself has computed.

Models of Hugging Face transformers that are given `labels` return their loss beside everything
else, each library at its own place; `own_loss` finds it. Several losses are added up.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from dnic.errors import RuntimeFault

Loss = Callable[[Any, Tensor], Any]


def own_loss(output: Any, target: Tensor) -> Tensor:
    """The loss that the model has computed itself: for `worker.trainer(..., loss=own_loss)`.

    Args:
        output: of the model: the loss itself, something with an entry or attribute `loss`, or a
            tuple that begins with it.
        target: not looked at; the model has seen its targets among its inputs.

    Returns:
        A scalar.

    Raises:
        RuntimeFault: there is none.
    """
    found = output
    if isinstance(output, Mapping):
        found = output.get("loss")
    elif isinstance(output, (tuple, list)) and not hasattr(output, "loss"):
        found = output[0] if output else None
    elif not isinstance(output, Tensor):
        found = getattr(output, "loss", None)
    if isinstance(found, Tensor) and found.dim() == 0:
        return found
    raise RuntimeFault(
        f"the model's output holds no loss: {_text(output)}",
        where="model.py",
        expected="a scalar: output.loss, output['loss'], output[0] or the output itself",
        hint="define loss(output, target), or give the model its targets (such as labels)",
    )


def total_loss(loss: Loss, output: Any, target: Tensor) -> Tensor:
    """What a batch's backward pass starts from: the loss, or the sum of several in their order.

    Args:
        loss: the model file's, or `own_loss`.
        output: of the model.
        target: of the same batch.

    Returns:
        A scalar.

    Raises:
        RuntimeFault: `loss` returned something else.
    """
    value = loss(output, target)
    parts = list(value.values()) if isinstance(value, Mapping) else value
    if not isinstance(parts, (tuple, list)):
        parts = [parts]
    if not parts or not all(isinstance(part, Tensor) and part.dim() == 0 for part in parts):
        raise RuntimeFault(
            f"loss(output, target) did not return a scalar tensor but {_text(value)}",
            where="model.py",
            expected="the mean over the batch; or several losses, as a tuple, list or mapping",
        )
    total: Tensor = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def mean_loss(losses: Sequence[Tensor]) -> Tensor | None:
    """The loss of a batch from those of its microbatches; None where there are none."""
    if not losses:
        return None
    return losses[0] if len(losses) == 1 else torch.stack(list(losses)).mean()


def _text(value: Any) -> str:
    """What a person needs to know of a value: `{logits: [4, 7]}`, `(float, [4])`, `[4, 7]`."""
    if isinstance(value, Tensor):
        return str(list(value.shape))
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "(" + ", ".join(_text(part) for part in value) + ")"
    return type(value).__name__
