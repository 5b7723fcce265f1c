"""The numbers that a forward pass computes in: fp32, or bf16 where torch's autocast allows it.

Under `bf16` matrix products and convolutions run in bfloat16, what would suffer (losses, norms,
exponentials) in float32: `torch.autocast` decides, operation by operation. Parameters, their
gradients and the optimizer stay float32; bfloat16 has float32's range, so losses are not scaled.

What crosses between stages has the dtype that the plan says, which was found in float32: a
bfloat16 output is cast to it. That loses nothing, and its gradient, which becomes bfloat16 again,
loses nothing either. So the plan's structure does not depend on the precision, which can be edited
without compiling again. One difference to the undivided model remains: an addition of a tensor that
crossed (a residual stream) to one that did not is made in float32 instead of bfloat16.

Heads and everything else that the model file does not hold run as ever. Not handled: float16, whose
range needs scaled losses; parts of a model that shall stay out (the model file may open an
`autocast(enabled=False)` of its own).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from dnic.errors import RuntimeFault
from dnic.runtime.plan import Precision


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The region in which a forward pass and a loss run."""
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


def check_precision(precision: Precision, device: torch.device) -> None:
    """Refuses a precision that a device does not have.

    Raises:
        RuntimeFault: bf16 on a GPU without it.
    """
    if precision == "bf16" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        raise RuntimeFault(
            f"{torch.cuda.get_device_name(device)} has no bfloat16",
            where="plan.yaml: train: precision",
            expected="fp32 on this device",
        )


def autocast_forward(
    forward: Callable[..., Any],
    precision: Precision,
    device: torch.device,
    sent: Sequence[torch.dtype] | None,
) -> Callable[..., Any]:
    """A forward that runs in a precision.

    Args:
        forward: of a stage, or of the undivided model.
        precision: other than fp32.
        device: where it runs.
        sent: the planned dtypes of the stage's outputs; None leaves the output as it is.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        with autocast(precision, device):
            output = forward(*args, **kwargs)
        return output if sent is None else as_planned(output, sent)

    return run


def as_planned(output: Any, dtypes: Sequence[torch.dtype]) -> Any:
    """A stage's outputs with floating-point ones in their planned dtype; gradients flow back."""
    if isinstance(output, Tensor):
        return _cast(output, dtypes[0])
    if not isinstance(output, (tuple, list)) or len(output) != len(dtypes):
        return output  # not what is planned; whoever sends it says so
    return tuple(_cast(tensor, dtype) for tensor, dtype in zip(output, dtypes, strict=True))


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype) if tensor.is_floating_point() else tensor
