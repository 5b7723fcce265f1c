"""A stage as `torch.distributed.pipelining` wants it: tensors in, tensors out, in one agreed order.

torch's `PipelineStage` passes a stage's outputs to the next one by position, splits a batch along
the first axis, sends tensors as they lie in memory, and compares no shapes. Here a cell around the
stage takes microbatches from a queue, cut along the axis that follows the batch; sends what the
interface lists, in its order, checked and contiguous; and at the last stage computes the loss where
the output is, so that an output may be anything.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.links import dtype_named
from dnic.runtime.plan import InputSpec, InterfacePlan, StagePlan, TensorSpec


class Cell(nn.Module):
    """A stage between two interfaces, for microbatches of one size.

    Args:
        stage: the stage; its parameters are the cell's.
        plan: the names of its inputs and outputs.
        below: the interface from which its inputs come; None at the first stage.
        above: the interface to which its outputs go; None at the last stage.
        size: samples in a microbatch.
        finish: what the last stage makes of its output, such as a loss.

    Attributes:
        inputs: of the first stage, for each microbatch that is still to run.
    """

    def __init__(
        self,
        stage: nn.Module,
        plan: StagePlan,
        below: InterfacePlan | None,
        above: InterfacePlan | None,
        size: int,
        finish: Callable[[Any], Tensor],
    ) -> None:
        super().__init__()
        self.stage = stage
        self.inputs: deque[list[Tensor]] = deque()
        self._plan = plan
        self._below = below
        self._above = above
        self._size = size
        self._finish = finish

    def forward(self, *received: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Runs one microbatch.

        Raises:
            RuntimeFault: an output is not as planned.
        """
        if self._below is None:
            inputs = self.inputs.popleft()
        else:
            names = [spec.name for spec in self._below.tensors]
            named = dict(zip(names, received, strict=True))
            inputs = [named[name] for name in self._plan.inputs]
        output = self.stage(*inputs)
        if self._above is None:
            return self._finish(output)
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        if len(outputs) != len(self._plan.outputs):
            raise RuntimeFault(
                f"{self._plan.name} returned {len(outputs)} tensors",
                where="stages.py",
                expected=", ".join(self._plan.outputs),
            )
        by_name = dict(zip(self._plan.outputs, outputs, strict=True))
        return tuple(self._sent(spec, by_name[spec.name]) for spec in self._above.tensors)

    def received(self) -> tuple[Tensor, ...]:
        """What it receives, without data: shapes, dtypes and which tensors carry a gradient."""
        return _outlines(self._below, self._size)

    def sent(self) -> tuple[Tensor, ...]:
        """What it sends, without data; at the last stage a scalar, which goes nowhere."""
        return _outlines(self._above, self._size) or (torch.empty((), device="meta"),)

    def _sent(self, spec: TensorSpec, tensor: Tensor) -> Tensor:
        shape, dtype = spec.resolve(self._size), dtype_named(spec.dtype)
        if tensor.shape != shape or tensor.dtype != dtype:
            raise RuntimeFault(
                f"{spec.name} of a microbatch of {self._size} has the shape {list(tensor.shape)} "
                f"and the dtype {str(tensor.dtype).removeprefix('torch.')}",
                where="plan.yaml: interfaces",
                expected=f"{list(shape)}, {spec.dtype}",
                hint="--mode exact --microbatches 1 does not cut batches",
            )
        return tensor.contiguous()


def cut(tensor: Tensor, spec: InputSpec | None, parts: int) -> list[Tensor]:
    """A batch's tensor in equal parts, along the axis that follows the batch.

    One that does not follow it goes to every part.

    Args:
        tensor: of a whole batch.
        spec: what the plan says of it; where it does not know the shape, it is the first axis.
        parts: how many.
    """
    axis = 0
    if spec is not None and spec.shape is not None:
        following = [place for place, size in enumerate(spec.shape) if isinstance(size, str)]
        if not following:
            return [tensor] * parts
        axis = following[0]
    return [part.contiguous() for part in tensor.chunk(parts, axis)]


def cut_all(
    tensors: Sequence[Tensor], specs: Sequence[InputSpec] | None, parts: int
) -> list[list[Tensor]]:
    """The inputs of each part of a batch."""
    known = specs if specs is not None else [None] * len(tensors)
    columns = [cut(tensor, spec, parts) for tensor, spec in zip(tensors, known, strict=True)]
    return [list(row) for row in zip(*columns, strict=True)]


def _outlines(interface: InterfacePlan | None, size: int) -> tuple[Tensor, ...]:
    return tuple(
        torch.empty(
            spec.resolve(size),
            dtype=dtype_named(spec.dtype),
            device="meta",
            requires_grad=spec.differentiable,
        )
        for spec in (interface.tensors if interface is not None else ())
    )
