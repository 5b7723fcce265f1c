"""How a torch function that a model called is written down as an fx node.

Under a `TorchFunctionMode` `x + 1` arrives as the method `Tensor.add`, `x[0]` as a slot wrapper and
`x.T` as the getter of a property. Written down like that the emitted code would read like a
disassembly; here each becomes what the user wrote: an operator, an index, an attribute.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

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


def reads_data(func: Callable[..., Any]) -> bool:
    """Whether `func` hands the value of a tensor to Python."""
    return qualified_name(func).rsplit(".", 1)[-1] in READS_DATA


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
