"""Capture a model: record it, record it again where one run proves too little, and say what it is.

Three runs are compared: train mode, train mode with one more sample, eval mode. What differs is
marked (`align`); a module whose inside cannot be written down (a branch on the values of tensors,
other operations in eval mode) is kept whole and runs as the user wrote it. Where that would be much
of the model, it is first recorded as compilers see it: libraries have a way without such branches.
Only when nothing helps does the capture fail, naming the line.

The model is left as it was: buffers, attributes, mode and the random state are put back. Inputs
have their batch on the first axis.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from dnic.errors import TraceError
from dnic.trace.align import align_batch, align_mode, shape_with_batch
from dnic.trace.foreign import seeded
from dnic.trace.frames import is_users, user_line
from dnic.trace.inputs import (
    Named,
    batch_size_of,
    constants_of,
    fresh,
    grown,
    input_names,
    tensors_by_path,
)
from dnic.trace.leaves import coarse_leaves, fine_leaves
from dnic.trace.merge import merge_modes, select
from dnic.trace.obstacle import Obstacle, OtherInMode, ReadsData, Stateful
from dnic.trace.recorded import recorded
from dnic.trace.recorder import Recorder
from dnic.trace.recording import Calls, Recording
from dnic.trace.settings import as_compilers_see_it, without_cache
from dnic.trace.settled import only_filled_a_cache, state_names
from dnic.trace.state import Attributes, untouched

Shape = tuple[int | str, ...]

# A module with more of the parameters than this is kept whole only when nothing else helps.
MUCH = 0.25


@dataclass(frozen=True)
class TracedModel:
    """A captured model.

    Attributes:
        name: the model's class name.
        module: the user's model itself.
        graph: what it does, in train mode; constants that follow the batch are `BatchSize` or
            `BatchShare`, those that follow the mode `ModeSwitch`. `node.meta` holds a `Recorded`
            each.
        batch_size: number of samples in the example inputs.
        inputs: name and path in a batch of each tensor that it takes, in order.
        constants: path and value of its plain arguments.
        shapes: by node name, the tensor's shape with the batch symbolic; a tensor whose size
            follows neither is missing.
        calls: what the finest capture called, by which cuts are found in coarser ones;
            `evaluation_calls` the same in eval mode.
        whole: paths of modules that are kept whole, with the reason.
        compiling: whether it was recorded as compilers see it, and why; empty when it was not.
        checks: lines of checks on data that the recorded run passed; they are not written down.
        both_modes: whether operations that only one mode runs are in the graph, marked.
    """

    name: str
    module: nn.Module
    graph: fx.Graph
    batch_size: int
    inputs: Named
    constants: tuple[tuple[tuple[str | int, ...], Any], ...]
    shapes: dict[str, Shape]
    calls: Calls
    evaluation_calls: Calls
    whole: dict[str, str]
    compiling: str = ""
    checks: tuple[str, ...] = ()
    both_modes: bool = False

    def __str__(self) -> str:
        lines = [f"{self.name}: {len(self.graph.nodes)} nodes at batch size {self.batch_size}"]
        lines += [f"  {node.format_node()}" for node in self.graph.nodes]
        return "\n".join(lines)


@dataclass
class _Way:
    """How a model is recorded; grows while obstacles are met."""

    whole: dict[str, str] = field(default_factory=dict)
    compiling: str = ""
    tried_compiling: bool = False
    both_modes: bool = False


def capture_fine(model: nn.Module, inputs: Any) -> TracedModel:
    """Capture a model down to the modules of `torch.nn`.

    Args:
        model: any module; left unchanged.
        inputs: one batch along the first axis: a tuple of positional arguments, or a mapping of
            keyword arguments.

    Raises:
        TraceError: the model fails on its inputs, or cannot be written down.
    """
    way = _Way()
    while True:
        try:
            return _capture(model, inputs, fine_leaves(way.whole), None, way)
        except Obstacle as obstacle:
            _overcome(model, obstacle, way)
        except TraceError:
            if not way.compiling:
                raise
            way.compiling = ""  # the model runs only as it is


def capture_coarse(fine: TracedModel, inputs: Any, opened: Collection[str]) -> TracedModel:
    """Capture the same model with every module whole but those in `opened`.

    Args:
        fine: the capture in which the cuts were found.
        inputs: the example inputs again.
        opened: dotted paths of the modules inside which a cut falls.

    Raises:
        TraceError: the model does not run as it did before.
    """
    rule = coarse_leaves(opened, fine.whole)
    way = _Way(fine.whole, fine.compiling, both_modes=fine.both_modes)
    try:
        return _capture(fine.module, inputs, rule, (fine.calls, fine.evaluation_calls), way)
    except Obstacle as obstacle:
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


def has_own_loss(traced: TracedModel) -> bool:
    """Whether the model's output holds a scalar loss, where `runtime.own_loss` looks for it."""
    (output,) = (node for node in traced.graph.nodes if node.op == "output")
    found = output.args[0]
    if isinstance(found, fx.Node) and found.target is select:
        found = found.args[0]
    if isinstance(found, fx.Node) and recorded(found).tensor is None:
        found = found.kwargs  # A dataclass is built from its fields.
    if isinstance(found, Mapping):
        found = found.get("loss")
    elif isinstance(found, tuple | list):
        found = found[0] if found else None
    tensor = recorded(found).tensor if isinstance(found, fx.Node) else None
    return tensor is not None and tensor.shape == () and tensor.requires_grad


def _capture(
    model: nn.Module,
    inputs: Any,
    rule: Callable[[nn.Module, str], bool],
    fine: tuple[Calls, Calls] | None,
    way: _Way,
) -> TracedModel:
    batch = batch_size_of(inputs)
    batches = (batch, batch + 1)
    named = input_names(model, inputs)

    def record(given: Any, *, training: bool, again: bool = False) -> Recording:
        calls = fine[0 if training else 1] if fine else None
        with untouched(model), without_cache(model), as_compilers_see_it(bool(way.compiling)):
            model.train(training)
            before = Attributes(model)
            first = _record(model, given, named, rule, calls)
            if again and (changed := before.changed(first.opened)):
                _check_state(
                    first, changed, lambda: _record(model, given, named, rule, calls), model
                )
            return first

    train = record(inputs, training=True, again=fine is None)
    larger = record(grown(inputs, batch), training=True)
    align_batch(train.graph, larger.graph, batches)
    evaluation = record(inputs, training=False)
    shapes = _shapes(train.graph, larger.graph, batches)
    graph = train.graph
    if way.both_modes:
        larger = record(grown(inputs, batch), training=False)
        align_batch(evaluation.graph, larger.graph, batches)
        graph, ours, theirs = merge_modes(train.graph, evaluation.graph)
        others = _shapes(evaluation.graph, larger.graph, batches)
        shapes = {theirs[node]: shape for node, shape in others.items()} | {
            ours[node]: shape for node, shape in shapes.items()
        }
        _select_shapes(graph, shapes)
    else:
        align_mode(train.graph, evaluation.graph)
    return TracedModel(
        name=type(model).__name__,
        module=model,
        graph=graph,
        batch_size=batch,
        inputs=named,
        constants=constants_of(inputs),
        shapes={node.name: shape for node, shape in shapes.items()},
        calls=fine[0] if fine else train.calls,
        evaluation_calls=fine[1] if fine else evaluation.calls,
        both_modes=way.both_modes,
        whole=dict(way.whole),
        compiling=way.compiling,
        checks=tuple(sorted(train.checks | larger.checks | evaluation.checks)),
    )


def _shapes(
    graph: fx.Graph, twin: fx.Graph, batches: tuple[int, int]
) -> dict[fx.Node, tuple[int | str, ...]]:
    """Shapes of a graph's tensors with the batch symbolic, from a recording of a larger batch."""
    shapes: dict[fx.Node, Shape] = {}
    for node, other in zip(graph.nodes, twin.nodes, strict=True):
        small, large = recorded(node).tensor, recorded(other).tensor
        if recorded(node).unsized or not small or not large:
            continue
        if len(small.shape) == len(large.shape):
            shape = shape_with_batch(small.shape, large.shape, batches)
            if shape is not None:
                shapes[node] = shape
    return shapes


def _select_shapes(graph: fx.Graph, shapes: dict[fx.Node, Shape]) -> None:
    """A choice between two tensors has a shape where both have the same."""
    for node in graph.nodes:
        if node.target is select:
            found = {shapes.get(n) if isinstance(n, fx.Node) else None for n in node.args}
            (shape, *others) = found
            if shape is not None and not others:
                shapes[node] = shape


def _record(
    model: nn.Module,
    inputs: Any,
    named: Named,
    rule: Callable[[nn.Module, str], bool],
    fine: Calls | None,
) -> Recording:
    with seeded(), torch.enable_grad():
        try:
            return Recorder(model, rule, fine).run(fresh(inputs), named)
        except Obstacle:
            raise
        except Exception as error:
            shapes = ", ".join(str(tuple(x.shape)) for _, x in tensors_by_path(inputs))
            raise TraceError(
                f"{type(model).__name__} fails on inputs of shape {shapes}: "
                f"{type(error).__name__}: {error}",
                where=_line_of(error),
                expected="a model that runs on example_inputs() and on one sample more",
                hint="run model(*example_inputs()) yourself; sizes must not be fixed to one batch",
            ) from error


def _check_state(
    first: Recording,
    changed: list[tuple[str, str]],
    record: Callable[[], Recording],
    model: nn.Module,
) -> None:
    """A forward that changed attributes must do the same when it runs again: a cache may.

    Raises:
        Stateful: it does something else, or changes a plain value once more.
    """
    before = Attributes(model)
    tensors = {name for path, name in changed if _is_tensor(model, path, name)}
    try:
        second = record()
        if only_filled_a_cache(first, second, state_names(model)):
            before, first = Attributes(model), second
            second = record()
        align_batch(first.graph, second.graph, (1, 2))
        still = [c for c in before.changed(first.opened) if c in changed and c[1] not in tensors]
    except Obstacle as obstacle:
        still = [c for c in changed if c[0] == obstacle.scope] or changed
    if still:
        path, name = still[0]
        owner = f"{path}.{name}" if path else name
        inside = [f for f in map(recorded, first.graph.nodes) if _is_inside(f.scope, path)]
        source = next((facts.source for facts in inside if facts.source), "its forward")
        raise Stateful(f"a forward that changes self.{owner} every time", path, source)


def _is_inside(scope: str, path: str) -> bool:
    return not path or scope == path or scope.startswith(f"{path}.")


def _is_tensor(model: nn.Module, path: str, name: str) -> bool:
    return isinstance(getattr(model.get_submodule(path), name, None), torch.Tensor)


def _overcome(model: nn.Module, obstacle: Obstacle, way: _Way) -> None:
    """Find a way around an obstacle: keep the module in which it lies whole, or give up."""
    path = obstacle.scope
    while path and path in way.whole:
        path = path.rpartition(".")[0]
    much = not path or _share(model, path) > MUCH
    if isinstance(obstacle, ReadsData) and much and not way.tried_compiling:
        way.tried_compiling = True
        way.compiling = str(obstacle)
        return
    if isinstance(obstacle, OtherInMode) and much and not way.both_modes:
        way.both_modes = True
        return
    if path:
        for alike in _alike(model, path):
            way.whole[alike] = str(obstacle)
        return
    name = type(model).__name__
    problem = f"{name} cannot be captured: {obstacle}"
    expected = None
    if isinstance(obstacle, ReadsData):
        problem = f"the forward of {name} has {obstacle.what}"
        expected = "control flow that depends on shapes and settings only"
    raise TraceError(
        problem, where=obstacle.source, expected=expected, hint=obstacle.hint
    ) from None


def _alike(model: nn.Module, path: str) -> list[str]:
    """The module at `path`, and those of the same class: they will meet the same obstacle."""
    kind = type(model.get_submodule(path))
    if _share(model, path) > MUCH or kind.__module__.startswith("torch.nn."):
        return [path]
    return [path, *(p for p, m in model.named_modules() if type(m) is kind and p not in ("", path))]


def _share(model: nn.Module, path: str) -> float:
    """Share of the model's parameters that a module holds."""
    whole = sum(p.numel() for p in model.parameters())
    return sum(p.numel() for p in model.get_submodule(path).parameters()) / max(whole, 1)


def _line_of(error: BaseException) -> str:
    """`file:line` of the innermost frame of the user's code in a traceback."""
    trace, found = error.__traceback__, None
    while trace is not None:
        file = trace.tb_frame.f_code.co_filename
        if is_users(file):
            found = f"{file}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found or user_line()
