"""One operation on its own: what it is, and how long it takes forward and backward."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dnic.cost.clock import Clock, repeated, typical
from dnic.cost.walk import Call
from dnic.trace import leaves, qualified_name, tensors_in

BUDGET_US = 6_000.0

_PLAIN: tuple[type, ...] = (int, float, complex, bool, str, bytes, type(None), type(...))
_PLAIN += (torch.dtype, torch.device, torch.memory_format, torch.layout)


@dataclass(frozen=True)
class Timing:
    """Microseconds of one operation."""

    forward_us: float
    backward_us: float


@dataclass(frozen=True)
class Key:
    """What an operation is; two with the same key take the same time.

    Attributes:
        digest: of everything that decides.
        lasting: whether it means the same in another run of the program. Not for the user's own
            code, which may change, and for arguments that are not plain.
    """

    digest: str
    lasting: bool


def key_of(call: Call) -> Key:
    """The key of an operation: its function or module with every setting, and its tensors."""
    lasting = True
    parts: list[str] = [call.node.op, f"grad={call.grad}", f"mutates={call.mutates}"]
    if isinstance(call.function, nn.Module):
        lasting = _is_torchs(call.function)
        parts += _module_parts(call.function)
    elif call.node.op == "call_method":
        parts.append(str(call.node.target))
    else:
        name = qualified_name(call.function)
        lasting = name.partition(".")[0] in ("torch", "_operator", "operator", "dnic", "math")
        parts.append(name)
    for leaf in leaves((call.args, call.kwargs)):
        if isinstance(leaf, Tensor):
            parts.append(_tensor_part(leaf))
        elif isinstance(leaf, _PLAIN):
            parts.append(repr(leaf))
        else:
            parts.append(f"{type(leaf).__qualname__}@{id(leaf)}")
            lasting = False
    parts.append(",".join(call.kwargs))
    return Key(hashlib.sha256("|".join(parts).encode()).hexdigest()[:24], lasting)


def time_call(call: Call, clock: Clock, budget_us: float = BUDGET_US) -> Timing:
    """Run an operation on copies of its tensors, forward and backward, and time both.

    Tensors and modules on the meta device are given memory for it. Modules are copied, so that
    running statistics stay; the caller keeps the random state.

    Raises:
        RuntimeError, TypeError, ValueError: it does not run on its own.
    """
    function, args, kwargs = _alone(call)
    weights = [leaf for leaf in _sources(function, args, kwargs) if leaf.requires_grad]
    gradients: list[Tensor] = []

    def once() -> tuple[float, float]:
        given, named = (args, kwargs) if not call.mutates else _unshared(args, kwargs)
        with torch.set_grad_enabled(call.grad):
            start = clock()
            out = function(*given, **named)
            ran = clock()
        ends = [t for t in tensors_in(out) if t.requires_grad and t.grad_fn is not None]
        forward = clock.between(start, ran)
        if not ends or not weights:
            return forward, 0.0
        if len(gradients) != len(ends):
            gradients[:] = [torch.randn_like(end) for end in ends]
        start = clock()
        torch.autograd.grad(ends, weights, gradients, allow_unused=True)
        return forward, clock.between(start, clock())

    forward, backward = repeated(once, budget_us)
    empty = empty_backward_us(clock) if typical(backward) else 0.0
    return Timing(typical(forward), max(typical(backward) - empty, 0.0))


def _alone(call: Call) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
    """The call with a module and tensors of its own."""
    made: dict[int, Tensor] = {}

    def own(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in made:
            made[id(leaf)] = _own_tensor(leaf)
        return made[id(leaf)]

    function = call.function
    if isinstance(function, nn.Module):
        function = _own_module(function)
    return function, map_leaves(call.args, own), map_leaves(call.kwargs, own)


def _own_tensor(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        if not tensor.is_meta:
            own = tensor.detach()
        else:
            own = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            own.normal_() if tensor.is_floating_point() else own.zero_()
    return own.requires_grad_(tensor.requires_grad)


def _own_module(module: nn.Module) -> nn.Module:
    own = copy.deepcopy(module)
    if any(tensor.is_meta for tensor in (*own.parameters(), *own.buffers())):
        own = own.to_empty(device="cpu")
        with torch.no_grad():
            for tensor in (*own.parameters(), *own.buffers()):
                tensor.fill_(1e-2 if tensor.is_floating_point() else 0)
    return own


def _unshared(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
    """Copies that an operation may overwrite, with the graph that leads to the originals."""

    def copied(leaf: Any) -> Any:
        return leaf.clone() if isinstance(leaf, Tensor) else leaf

    with torch.enable_grad():
        return map_leaves(args, copied), map_leaves(kwargs, copied)


def _sources(function: Callable[..., Any], args: Any, kwargs: Any) -> Iterator[Tensor]:
    """Tensors that a gradient may be asked for, each once."""
    seen: set[int] = set()
    parameters = list(function.parameters()) if isinstance(function, nn.Module) else []
    for tensor in (*tensors_in((args, kwargs)), *parameters):
        if id(tensor) not in seen:
            seen.add(id(tensor))
            yield tensor


def empty_backward_us(clock: Clock) -> float:
    """What asking autograd for any gradient costs, which a model pays once and not here."""
    if clock not in _EMPTY:
        source = torch.zeros((), requires_grad=True)
        one = torch.ones(())

        def once() -> tuple[float]:
            end = source.view(())
            start = clock()
            torch.autograd.grad([end], [source], [one])
            return (clock.between(start, clock()),)

        (times,) = repeated(once, 2_000.0, most=200)
        _EMPTY[clock] = typical(times)
    return _EMPTY[clock]


_EMPTY: dict[Clock, float] = {}


def map_leaves(value: Any, change: Callable[[Any], Any]) -> Any:
    """Arguments with every leaf of tuples, lists and dictionaries changed."""
    if isinstance(value, dict):
        return {key: map_leaves(entry, change) for key, entry in value.items()}
    if isinstance(value, torch.Size):
        return value
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_leaves(entry, change) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(map_leaves(entry, change) for entry in value)
    return change(value)


def _is_torchs(module: nn.Module) -> bool:
    return all(type(part).__module__.startswith("torch.nn.") for part in module.modules())


def _module_parts(module: nn.Module) -> Iterator[str]:
    for path, part in module.named_modules():
        yield f"{path}:{type(part).__module__}.{type(part).__qualname__}"
        for name, value in sorted(vars(part).items()):
            if isinstance(value, (*_PLAIN, tuple, list)) and not name.startswith("__"):
                yield f"{name}={value!r}"
            elif callable(value) and not isinstance(value, nn.Module):
                yield f"{name}={qualified_name(value)}"
        for tensor in (*part._parameters.values(), *part._buffers.values()):
            yield _tensor_part(tensor) if tensor is not None else "None"


def _tensor_part(tensor: Tensor) -> str:
    strides = tensor.stride() if tensor.layout is torch.strided else tensor.layout
    facts = (tuple(tensor.shape), strides, tensor.dtype, tensor.requires_grad, tensor.device.type)
    return str(facts)
