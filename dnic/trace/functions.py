"""How a torch function that a model called is written down as an fx node.

Under a `TorchFunctionMode` `x + 1` arrives as the method `Tensor.add`, `x[0]` as a slot wrapper and
`x.T` as the getter of a property. Written down like that the emitted code would read like a
disassembly; here each becomes what the user wrote: an operator, an index, an attribute.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import resolve_name

OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "div": operator.truediv,
    "truediv": operator.truediv,
    "true_divide": operator.truediv,
    "floordiv": operator.floordiv,
    "floor_divide": operator.floordiv,
    "remainder": operator.mod,
    "mod": operator.mod,
    "pow": operator.pow,
    "matmul": operator.matmul,
    "gt": operator.gt,
    "lt": operator.lt,
    "ge": operator.ge,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "and": operator.and_,
    "or": operator.or_,
    "xor": operator.xor,
}
UNARY: dict[str, Callable[..., Any]] = {"neg": operator.neg, "invert": operator.invert}
ITEMS: dict[str, Callable[..., Any]] = {
    "__getitem__": operator.getitem,
    "__setitem__": operator.setitem,
}

# Asking one of these for the value of a tensor turns data into control flow: a recording would
# freeze what happened to be true of the example.
# Where functions live that torch's own table of names does not know.
HOMES = ("torch", "torch._VF", "torch._C._nn", "torch.nn.functional", "torch._C._linalg")

READS_DATA = frozenset(
    {
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "__complex__",
        "__contains__",
        "item",
        "tolist",
        "numpy",
        "__array__",
        "equal",
        "allclose",
        "is_nonzero",
    }
)

# Sizes of what these yield follow from the values of what they take.
MAKES_SIZES = frozenset(
    {
        "nonzero",
        "argwhere",
        "masked_select",
        "unique",
        "unique_consecutive",
        "_unique2",
        "bincount",
        "_pack_padded_sequence",
    }
)
READS_SIZE = frozenset({"size", "numel", "nelement", "__len__", "unbind", "split", "tensor_split"})
# These yield a tensor of the size of their first argument, whatever the sizes of the others.
KEEPS_SHAPE = frozenset(
    {
        "index_add",
        "index_copy",
        "index_fill",
        "index_put",
        "masked_fill",
        "masked_scatter",
        "scatter",
        "scatter_add",
        "scatter_reduce",
        "__setitem__",
    }
)
DRAWS = frozenset(
    {
        "rand",
        "rand_like",
        "randn",
        "randn_like",
        "randint",
        "randint_like",
        "randperm",
        "normal",
        "bernoulli",
        "multinomial",
        "poisson",
        "normal_",
        "uniform_",
        "bernoulli_",
        "random_",
        "exponential_",
        "gumbel_softmax",
    }
)
HOOKS = frozenset({"register_hook", "register_post_accumulate_grad_hook"})


@dataclass(frozen=True)
class Call:
    """An fx node to be: `op` and `target` in fx's sense, arguments, and a stem for its name."""

    op: str
    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    stem: str


def qualified_name(func: Callable[..., Any]) -> str:
    """`torch.nn.functional.relu`, `torch.Tensor.view`, `torch.Tensor.T.__get__`."""
    name = resolve_name(func)
    if name:
        return str(name)
    module = getattr(func, "__module__", None) or "torch"
    return f"{module}.{getattr(func, '__qualname__', func)}"


@lru_cache(maxsize=4096)
def source_name(func: Callable[..., Any]) -> str | None:
    """A dotted name by which emitted code reaches `func`; None where there is none."""
    name = qualified_name(func)
    last = name.rpartition(".")[2]
    for candidate in (name, *(f"{home}.{last}" for home in HOMES)):
        found: Any = sys.modules.get(candidate.partition(".")[0])
        for part in candidate.split(".")[1:]:
            found = getattr(found, part, None)
        if found is not None and (found == func or candidate == name):
            return candidate
    return None


def reads_data(func: Callable[..., Any]) -> bool:
    """Whether `func` hands the value of a tensor to Python."""
    return _last(func) in READS_DATA


def reads_size(func: Callable[..., Any]) -> bool:
    """Whether `func` hands the size of a tensor to Python."""
    return _last(func) in READS_SIZE or qualified_name(func) == "torch.Tensor.shape.__get__"


def makes_sizes(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the sizes of the result follow from values: `x[mask]`, `nonzero`."""
    last = _last(func)
    if last in MAKES_SIZES:
        return True
    if last == "where":
        return len(args) + len(kwargs) == 1
    if last == "repeat_interleave":
        return "output_size" not in kwargs and isinstance((*args, None)[1], Tensor)
    if last == "one_hot":
        return len(args) < 2 and "num_classes" not in kwargs
    if last == "__getitem__":
        index = args[1] if isinstance(args[1], tuple) else (args[1],)
        masks = (torch.bool, torch.uint8)
        return any(isinstance(i, Tensor) and i.dtype in masks for i in index)
    return False


def keeps_shape(func: Callable[..., Any]) -> bool:
    """Whether the result has the size of the first argument; changes in place do."""
    last = _last(func)
    return last in KEEPS_SHAPE or (last.endswith("_") and not last.endswith("__"))


def pads(func: Callable[..., Any]) -> bool:
    """Whether `func` brings sequences of any length to a given one."""
    return _last(func) == "_pad_packed_sequence"


def draws(func: Callable[..., Any] | str) -> bool:
    """Whether the result is one of chance; a method may be given by its name."""
    return (func if isinstance(func, str) else _last(func)) in DRAWS


def hooks(func: Callable[..., Any]) -> bool:
    """Whether `func` changes the backward pass by a function of the user's."""
    return _last(func) in HOOKS


@lru_cache(maxsize=4096)
def _last(func: Callable[..., Any]) -> str:
    return qualified_name(func).rsplit(".", 1)[-1]


def as_call(func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
    """Write a call down as the user wrote it."""
    name = qualified_name(func)
    owner, _, last = name.rpartition(".")
    if last == "__get__":
        attribute = owner.rpartition(".")[2]
        return Call("call_function", getattr, (args[0], attribute), {}, attribute.lower())
    if not name.startswith("torch.Tensor."):
        return Call("call_function", func, args, kwargs, last.strip("_"))
    if last in ITEMS:
        return Call("call_function", ITEMS[last], args, {}, last.strip("_"))
    bare = last.strip("_") if last.startswith("__") else last
    if not kwargs and len(args) == 2:
        if bare in OPERATORS:
            return Call("call_function", OPERATORS[bare], args, {}, bare)
        if bare.startswith("r") and bare[1:] in OPERATORS:
            return Call("call_function", OPERATORS[bare[1:]], args[::-1], {}, bare[1:])
    if not kwargs and len(args) == 1 and bare in UNARY:
        return Call("call_function", UNARY[bare], args, {}, bare)
    return Call("call_method", last, args, kwargs, last.strip("_"))
