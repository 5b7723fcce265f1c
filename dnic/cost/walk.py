"""Run a captured model operation by operation, at the traced batch size or a smaller one.

`torch.fx.Interpreter` does the same for graphs of fx's own tracer. A capture also holds constants
that follow the batch (`BatchSize`) or the mode (`ModeSwitch`), operations of one mode only, and
calls that the model made without gradients; training's side of each is taken here.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from dnic.errors import DnicError
from dnic.trace import BatchShare, BatchSize, ModeSwitch, TracedModel, recorded, select

COMPUTES = ("call_module", "call_function", "call_method")


@dataclass(frozen=True)
class Call:
    """One operation, ready to run.

    Attributes:
        node: of the captured graph.
        function: what is called; a module, or a function of `args` and `kwargs`.
        args, kwargs: with tensors in place of nodes.
        grad: whether the model ran it with gradients.
        mutates: whether it changes one of its tensors in place.
    """

    node: fx.Node
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    grad: bool
    mutates: bool

    def run(self) -> Any:
        """The result."""
        with torch.set_grad_enabled(self.grad):
            return self.function(*self.args, **self.kwargs)


def walk(
    traced: TracedModel, inputs: Any, batch_size: int, visit: Callable[[Call], Any] = Call.run
) -> Any:
    """Run a capture and return the model's output.

    Args:
        traced: a capture; its module should be in train mode.
        inputs: a batch, of the structure of the example inputs.
        batch_size: number of samples in it.
        visit: called for every module, function and method; returns the result.

    Raises:
        DnicError: an operation fails; it is named.
    """
    values: dict[fx.Node, Any] = {}
    last_users = _last_users(traced.graph)
    paths = dict(traced.inputs)
    for node in traced.graph.nodes:
        if recorded(node).mode == "eval":
            continue
        if node.op == "placeholder":
            values[node] = _at(inputs, paths[str(node.target)])
        elif node.op == "get_attr":
            values[node] = operator.attrgetter(str(node.target))(traced.module)
        elif node.op == "output":
            return _resolved(node.args[0], values, batch_size)
        elif node.target is select:
            values[node] = values[node.args[0]]
        else:
            values[node] = _visit(traced, node, values, batch_size, visit)
        for done in last_users.get(node, ()):
            values.pop(done, None)
    raise DnicError("a capture without an output", where=traced.name)


def smaller(inputs: Any, batch_size: int, count: int) -> Any:
    """The first `count` samples of a batch: tensors with `batch_size` entries on axis 0 are cut."""

    def cut(leaf: Any) -> Any:
        follows = isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == batch_size
        return leaf[:count] if follows else leaf

    return _mapped(inputs, cut)


def _visit(
    traced: TracedModel,
    node: fx.Node,
    values: Mapping[fx.Node, Any],
    batch_size: int,
    visit: Callable[[Call], Any],
) -> Any:
    args = _resolved(node.args, values, batch_size)
    kwargs = _resolved(node.kwargs, values, batch_size)
    facts = recorded(node)
    call = Call(
        node=node,
        function=_function(traced.module, node),
        args=tuple(args),
        kwargs=dict(kwargs),
        grad=facts.grad_enabled,
        mutates=_overwrites(traced.module, node),
    )
    try:
        return visit(call)
    except (RuntimeError, ValueError, TypeError, LookupError, AttributeError) as error:
        raise DnicError(
            f"{node.name} cannot be run again: {type(error).__name__}: {error}", where=facts.source
        ) from error


def _function(model: nn.Module, node: fx.Node) -> Callable[..., Any]:
    if node.op == "call_module":
        return model.get_submodule(str(node.target))
    if node.op == "call_method":
        name = str(node.target)
        return lambda owner, *args, **kwargs: getattr(owner, name)(*args, **kwargs)
    function: Callable[..., Any] = node.target  # type: ignore[assignment]
    return function


def _overwrites(model: nn.Module, node: fx.Node) -> bool:
    """Whether it changes one of its arguments; of a module only its own statistics may change."""
    if node.op != "call_module":
        return bool(recorded(node).mutated)
    module = model.get_submodule(str(node.target))
    return any(getattr(part, "inplace", False) for part in module.modules())


def _resolved(structure: Any, values: Mapping[fx.Node, Any], batch_size: int) -> Any:
    """Arguments of a node as the model would pass them at this batch size in train mode."""

    def resolve(leaf: Any) -> Any:
        if isinstance(leaf, fx.Node):
            return values[leaf]
        if isinstance(leaf, ModeSwitch):
            return _resolved(leaf.train, values, batch_size)
        if isinstance(leaf, BatchSize):
            return leaf.multiple * batch_size + leaf.more
        if isinstance(leaf, BatchShare):
            return leaf.whole / batch_size
        return leaf

    return _mapped(structure, resolve)


def _mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """A structure with every leaf changed; fx's immutable lists become lists."""
    if isinstance(value, ModeSwitch):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, slice):
        ends = (value.start, value.stop, value.step)
        return slice(*(_mapped(end, change) for end in ends))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(_mapped(entry, change) for entry in value))
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, tuple):
        return tuple(_mapped(entry, change) for entry in value)
    if isinstance(value, list):
        return [_mapped(entry, change) for entry in value]
    if is_dataclass(value) and not isinstance(value, type):
        parts = {p.name: _mapped(getattr(value, p.name), change) for p in fields(value) if p.init}
        return replace(value, **parts)
    return change(value)


def _at(inputs: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        inputs = inputs[key]
    return inputs


def _last_users(graph: fx.Graph) -> dict[fx.Node, list[fx.Node]]:
    """For each node those whose results nothing needs after it."""
    last: dict[fx.Node, fx.Node] = {}
    for node in graph.nodes:
        if recorded(node).mode == "eval":
            continue
        for used in node.all_input_nodes:
            last[used] = node
    by_user: dict[fx.Node, list[fx.Node]] = {}
    for used, user in last.items():
        by_user.setdefault(user, []).append(used)
    return by_user
