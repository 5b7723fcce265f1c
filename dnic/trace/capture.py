"""Capture a model: record it, record it again where one run proves too little, and say what it is.

Three runs are compared: train mode, train mode with one more sample, eval mode. What differs is
marked (`align`); a module whose inside cannot be written down (a branch on the values of tensors,
other operations in eval mode) is kept whole and runs as the user wrote it. Only when that would be
the whole model does the capture fail, naming the line.

The model is left as it was: buffers, mode and the random state are put back. Not handled yet:
keyword inputs, and inputs whose batch is not the first axis.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from dnic.errors import TraceError
from dnic.trace.align import Misaligned, align_batch, align_mode, shape_with_batch
from dnic.trace.frames import is_users, user_line
from dnic.trace.leaves import coarse_leaves, fine_leaves
from dnic.trace.recorded import recorded
from dnic.trace.recorder import Recorder
from dnic.trace.recording import Calls, ReadsData, Recording, Unencodable

Shape = tuple[int | str, ...]


@dataclass(frozen=True)
class TracedModel:
    """A captured model.

    Attributes:
        name: the model's class name.
        module: the user's model itself.
        graph: what it does, in train mode; constants that follow the batch are `BatchSize`, those
            that follow the mode `ModeSwitch`. `node.meta` holds a `Recorded` each.
        batch_size: number of samples in the example inputs.
        shapes: by node name, the tensor's shape with the batch symbolic; a tensor whose size
            follows neither is missing.
        calls: what the finest capture called, by which cuts are found in coarser ones.
        whole: paths of modules that are kept whole, with the reason.
    """

    name: str
    module: nn.Module
    graph: fx.Graph
    batch_size: int
    shapes: dict[str, Shape]
    calls: Calls
    whole: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.graph.nodes)} nodes at batch size {self.batch_size}"]
        lines += [f"  {node.format_node()}" for node in self.graph.nodes]
        return "\n".join(lines)


def capture_fine(model: nn.Module, inputs: tuple[Tensor, ...]) -> TracedModel:
    """Capture a model down to the modules of `torch.nn`.

    Args:
        model: any module; left unchanged.
        inputs: positional arguments of its forward, one batch along the first axis.

    Raises:
        TraceError: the model fails on its inputs, or cannot be written down.
    """
    whole: dict[str, str] = {}
    while True:
        try:
            return _capture(model, inputs, fine_leaves(whole), None, whole)
        except (ReadsData, Unencodable, Misaligned) as obstacle:
            _keep_whole(model, obstacle, whole)


def capture_coarse(
    fine: TracedModel, inputs: tuple[Tensor, ...], opened: Collection[str]
) -> TracedModel:
    """Capture the same model with every module whole but those in `opened`.

    Args:
        fine: the capture in which the cuts were found.
        inputs: the example inputs again.
        opened: dotted paths of the modules inside which a cut falls.
    """
    rule = coarse_leaves(opened, fine.whole)
    try:
        return _capture(fine.module, inputs, rule, fine.calls, fine.whole)
    except (ReadsData, Unencodable, Misaligned) as obstacle:
        raise TraceError(
            f"the coarse capture of {fine.name} met what the fine one did not: {obstacle}",
            where=obstacle.source,
            hint="the model does not run the same way twice; make its forward deterministic",
        ) from obstacle


def opened_by(fine: TracedModel, events: Collection[int]) -> tuple[str, ...]:
    """Paths of the modules inside which a cut before one of these calls falls, outermost first."""
    opened = {
        path: None
        for (path, _), (first, last) in fine.calls.spans.items()
        if any(first < event < last for event in events)
    }
    return tuple(sorted(opened, key=lambda path: (path.count("."), path)))


def _capture(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    rule: Callable[[nn.Module, str], bool],
    fine: Calls | None,
    whole: dict[str, str],
) -> TracedModel:
    batch = batch_size_of(inputs)
    batches = (batch, batch + 1)
    train = _record(model, inputs, rule, fine, training=True)
    larger = _record(model, grown(inputs, batch), rule, fine, training=True)
    align_batch(train.graph, larger.graph, batches)
    evaluation = _record(model, inputs, rule, fine, training=False)
    align_mode(train.graph, evaluation.graph)
    shapes: dict[str, Shape] = {}
    for node, twin in zip(train.graph.nodes, larger.graph.nodes, strict=True):
        small, large = recorded(node).tensor, recorded(twin).tensor
        if small and large and len(small.shape) == len(large.shape):
            shape = shape_with_batch(small.shape, large.shape, batches)
            if shape is not None:
                shapes[node.name] = shape
    return TracedModel(
        name=type(model).__name__,
        module=model,
        graph=train.graph,
        batch_size=batch,
        shapes=shapes,
        calls=fine or train.calls,
        whole=dict(whole),
    )


def _record(
    model: nn.Module,
    inputs: tuple[Tensor, ...],
    rule: Callable[[nn.Module, str], bool],
    fine: Calls | None,
    *,
    training: bool,
) -> Recording:
    fresh = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
    with untouched(model), torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(0)
        model.train(training)
        try:
            return Recorder(model, rule, fine).run(fresh, input_names(model, len(inputs)))
        except (ReadsData, Unencodable):
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
            raise TraceError(
                f"{type(model).__name__} fails on inputs of shape {shapes}: "
                f"{type(error).__name__}: {error}",
                where=_line_of(error),
                expected="a model that runs on example_inputs() and on one sample more",
                hint="run model(*example_inputs()) yourself; sizes must not be fixed to one batch",
            ) from error


def _keep_whole(
    model: nn.Module, obstacle: ReadsData | Unencodable | Misaligned, whole: dict[str, str]
) -> None:
    """Note the module in which the obstacle lies as whole, or give up with the line."""
    path = obstacle.scope
    while path and path in whole:
        path = path.rpartition(".")[0]
    if path:
        whole[path] = str(obstacle)
        return
    if isinstance(obstacle, ReadsData):
        raise TraceError(
            f"the forward of {type(model).__name__} branches on the value of a tensor "
            f"(Tensor.{obstacle.function})",
            where=obstacle.source,
            expected="control flow that depends on shapes and settings only",
            hint="use torch.where, or move the branch into a submodule: dnic keeps that whole",
        ) from None
    raise TraceError(
        f"{type(model).__name__} cannot be captured: {obstacle}",
        where=obstacle.source,
        hint="move this code into a submodule: dnic keeps that whole",
    ) from None


def batch_size_of(inputs: tuple[Any, ...]) -> int:
    """Number of samples: the first size of the first input tensor that has one."""
    for value in inputs:
        if isinstance(value, Tensor) and value.dim() > 0:
            return int(value.shape[0])
    raise TraceError(
        "example_inputs() holds no tensor with a batch axis",
        expected="a tuple of tensors, samples along the first axis",
    )


def grown(inputs: tuple[Any, ...], batch: int, by: int = 1) -> tuple[Any, ...]:
    """The inputs with their first sample `by` more times."""

    def grow(value: Any) -> Any:
        follows = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
        return torch.cat([value, *[value[:1]] * by]) if follows else value

    return tuple(grow(value) for value in inputs)


def input_names(model: nn.Module, count: int) -> tuple[str, ...]:
    """The names that the model's forward gives its positional arguments."""
    names: list[str] = []
    for parameter in inspect.signature(model.forward).parameters.values():
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(count - len(names))]
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            names.append(parameter.name)
    if len(names) < count:
        raise TraceError(
            f"example_inputs() gives {count} inputs, {type(model).__name__}.forward takes "
            f"{len(names)}",
            expected=f"at most {len(names)} inputs: {', '.join(names)}",
        )
    return tuple(names[:count])


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put buffers and the mode of every module back afterwards."""
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, training in modes:
            module.training = training


def _line_of(error: BaseException) -> str:
    """`file:line` of the innermost frame of the user's code in a traceback."""
    trace, found = error.__traceback__, None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if is_users(file):
            found = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found or user_line()
