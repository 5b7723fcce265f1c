"""Python source for one recorded operation: operators, indexing, plain attribute access.

fx's own code generator writes every operation as a call on `torch.ops`-like targets and every
module as `getattr(self.layers, "3")`. People will read, and step through, what dnic emits.
"""

from __future__ import annotations

import inspect
import json
import keyword
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from dnic.spec.modelfile import is_model_file
from dnic.trace import (
    BatchShare,
    BatchSize,
    ModeSwitch,
    field_of,
    item,
    qualified_name,
    select,
    source_name,
)

INFIX: dict[Callable[..., Any], str] = {
    operator.add: "+",
    operator.sub: "-",
    operator.mul: "*",
    operator.truediv: "/",
    operator.floordiv: "//",
    operator.mod: "%",
    operator.pow: "**",
    operator.matmul: "@",
    operator.gt: ">",
    operator.lt: "<",
    operator.ge: ">=",
    operator.le: "<=",
    operator.eq: "==",
    operator.ne: "!=",
    operator.and_: "&",
    operator.or_: "|",
    operator.xor: "^",
}
PREFIX: dict[Callable[..., Any], str] = {operator.neg: "-", operator.invert: "~"}
SHORT_MODULES = {"torch.nn.functional": "F", "torch": "torch"}


@dataclass
class Names:
    """What the expressions of one file use: variables of the forward, modules to import.

    Attributes:
        variables: source text for each node that an expression may mention.
        device: source text for the device that the stage runs on.
        model: the model, whose modules' default arguments need not be said.
        imports: lines to import, filled as expressions are written.
        uses_batch: whether an expression mentioned `batch`.
    """

    variables: dict[fx.Node, str]
    device: str
    model: nn.Module | None = None
    imports: set[str] = field(default_factory=set)
    uses_batch: bool = False


def access(path: str) -> str:
    """`layers.3.conv` of the model as `self.layers[3].conv`."""
    text = "self"
    for part in path.split("."):
        if part.isdigit():
            text += f"[{part}]"
        else:
            plain = part.isidentifier() and not keyword.iskeyword(part)
            text += f".{part}" if plain else f"[{json.dumps(part)}]"
    return text


def call_text(node: fx.Node, names: Names) -> str:
    """The right-hand side that computes `node`."""
    args = [value_text(arg, names) for arg in _without_trailing_nones(node, names)]
    keywords = {key: value_text(arg, names) for key, arg in _said(node, names).items()}
    if node.op == "get_attr":
        return access(str(node.target))
    if node.op == "call_module":
        return invocation(access(str(node.target)), args, keywords)
    if node.op == "call_method":
        return invocation(f"{args[0]}.{node.target}", args[1:], keywords)
    function: Any = node.target
    if function is select:
        return f"{args[0]} if self.training else {args[1]}"
    if function in INFIX:
        left, right = (_operand(text) for text in args)
        return f"{left} {INFIX[function]} {right}"
    if function in PREFIX:
        return f"{PREFIX[function]}{args[0]}"
    if function in (operator.getitem, item):
        return f"{args[0]}[{index_text(node.args[1], names)}]"
    if function is operator.setitem:
        return f"{args[0]}[{index_text(node.args[1], names)}] = {args[2]}"
    if function in (getattr, field_of):
        return f"{args[0]}.{node.args[1]}"
    return invocation(function_text(function, names), args, keywords)


def _operand(text: str) -> str:
    """An operand; in parentheses where an operator would tear it apart."""
    whole = text.startswith("(") and text.endswith(")")
    return f"({text})" if (" " in text and not whole) or text.startswith("-") else text


def _said(node: fx.Node, names: Names) -> dict[str, Any]:
    """The keyword arguments that are not the defaults anyway."""
    parameters = _parameters(node, names)
    return {
        key: value
        for key, value in node.kwargs.items()
        if key not in parameters
        or type(parameters[key].default) is not type(value)
        or parameters[key].default != value
    }


def _without_trailing_nones(node: fx.Node, names: Names) -> Sequence[Any]:
    """The positional arguments without those at the end that are None by default, too."""
    parameters = list(_parameters(node, names).values())
    count = len(node.args)
    while 0 < count <= len(parameters) and node.args[count - 1] is None:
        if parameters[count - 1].default is not None:
            break
        count -= 1
    return node.args[:count]


def _parameters(node: fx.Node, names: Names) -> Mapping[str, inspect.Parameter]:
    """What the called function takes; nothing where that is not to be had."""
    function: Any = node.target
    if node.op == "call_module" and names.model is not None:
        function = names.model.get_submodule(str(node.target)).forward
    if not (inspect.isfunction(function) or inspect.ismethod(function)):
        return {}
    # `F.max_pool2d` is one of two functions, which take the same arguments.
    ways = inspect.getclosurevars(function).nonlocals if node.op == "call_function" else {}
    return inspect.signature(ways.get("if_false", function)).parameters


def invocation(function: str, args: list[str], keywords: Mapping[str, str]) -> str:
    """`function(a, b, key=c)`."""
    return f"{function}({', '.join([*args, *(f'{k}={v}' for k, v in keywords.items())])})"


def function_text(function: Callable[..., Any], names: Names) -> str:
    """`F.relu`, `torch.cat`, or a class of the user's after importing it."""
    if isinstance(function, type):
        return _class_text(function, names)
    owner = getattr(function, "__self__", None)
    if isinstance(owner, type):
        return f"{_class_text(owner, names)}.{function.__name__}"
    module, _, name = (source_name(function) or qualified_name(function)).rpartition(".")
    if module == "torch.nn.functional":
        names.imports.add("import torch.nn.functional as F")
    elif module.partition(".")[0] == "torch":
        names.imports.add("import torch")
    else:
        names.imports.add(f"import {module}")
    return f"{SHORT_MODULES.get(module, module)}.{name}"


def _class_text(kind: type, names: Names) -> str:
    """A class after importing it; the user's own from the bundle's copy of the model file."""
    module = "model" if is_model_file(kind.__module__) else kind.__module__
    outermost = kind.__qualname__.partition(".")[0]
    names.imports.add(f"from {module} import {outermost}")
    return kind.__qualname__


def index_text(index: Any, names: Names) -> str:
    """What stands between the brackets of an index."""
    if isinstance(index, tuple) and index:
        return ", ".join(index_text(part, names) for part in index) + "," * (len(index) == 1)
    if isinstance(index, slice):
        start, stop, step = (
            "" if end is None else value_text(end, names)
            for end in (index.start, index.stop, index.step)
        )
        return f"{start}:{stop}" + (f":{step}" if step else "")
    return value_text(index, names)


def value_text(value: Any, names: Names) -> str:
    """An argument as source: a variable, a constant, or a structure of these."""
    if isinstance(value, fx.Node):
        return names.variables[value]
    if isinstance(value, BatchSize | BatchShare):
        return _batch_text(value, names)
    if isinstance(value, ModeSwitch):
        return _switch_text(value, names)
    if isinstance(value, torch.device):
        return names.device
    if isinstance(value, torch.dtype | torch.memory_format | torch.layout):
        names.imports.add("import torch")
        return str(value)
    if isinstance(value, float) and not math.isfinite(value):
        return f'float("{value}")'
    if isinstance(value, slice):
        ends = ", ".join(value_text(v, names) for v in (value.start, value.stop, value.step))
        return f"slice({ends})"
    if isinstance(value, dict):
        return (
            "{"
            + ", ".join(f"{value_text(k, names)}: {value_text(v, names)}" for k, v in value.items())
            + "}"
        )
    if isinstance(value, list):
        return "[" + ", ".join(value_text(v, names) for v in value) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(value_text(v, names) for v in value) + "," * (len(value) == 1) + ")"
    if value is ...:
        return "..."
    return json.dumps(value) if isinstance(value, str) else repr(value)


def _batch_text(value: BatchSize | BatchShare, names: Names) -> str:
    names.uses_batch = True
    if isinstance(value, BatchShare):
        return f"{value.whole!r} / batch"
    text = "batch" if value.multiple == 1 else f"{value.multiple} * batch"
    sign = "+" if value.more > 0 else "-"
    return f"{text} {sign} {abs(value.more)}" if value.more else text


def _switch_text(switch: ModeSwitch, names: Names) -> str:
    if switch.train is True and switch.evaluation is False:
        return "self.training"
    if switch.train is False and switch.evaluation is True:
        return "not self.training"
    train, evaluation = value_text(switch.train, names), value_text(switch.evaluation, names)
    return f"({train} if self.training else {evaluation})"
