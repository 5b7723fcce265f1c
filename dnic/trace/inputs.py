"""One batch of a model's inputs: the tensors in it, what they are called, and larger copies of it.

A batch is a tuple of positional arguments or a mapping of keyword arguments, of tensors nested in
tuples, lists and mappings; plain values beside them are constants. `torch.utils._pytree` maps over
such structures but refuses mappings that it does not know, such as a tokenizer's `BatchEncoding`.
"""

from __future__ import annotations

import inspect
import keyword
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from dnic.errors import TraceError

Path = tuple[str | int, ...]
Named = tuple[tuple[str, Path], ...]

PLAIN = (bool, int, float, str, type(None))


def tensors_by_path(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Every tensor of a structure with its path, in order."""
    for found, leaf in _leaves(value, path):
        if isinstance(leaf, Tensor):
            yield found, leaf


def constants_of(inputs: Any) -> tuple[tuple[Path, Any], ...]:
    """The plain arguments of a batch, by path; nested ones belong to their structure."""
    top = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return tuple(((key,), value) for key, value in top if isinstance(value, PLAIN))


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """The structure with every leaf changed; mappings become dictionaries."""
    if isinstance(value, Mapping):
        return {key: mapped(entry, change) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(mapped(entry, change) for entry in value))
    if isinstance(value, tuple | list):
        return type(value)(mapped(entry, change) for entry in value)
    return change(value)


def fresh(inputs: Any) -> Any:
    """A copy with tensors of its own; one tensor given twice becomes two."""
    return mapped(inputs, lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf)


def to_meta(inputs: Any) -> Any:
    """The inputs without values: tensors on the meta device."""
    return mapped(inputs, lambda leaf: leaf.to("meta") if isinstance(leaf, Tensor) else leaf)


def batch_size_of(inputs: Any) -> int:
    """Number of samples: the first size of the first tensor that has one.

    Raises:
        TraceError: there is none.
    """
    for _, tensor in tensors_by_path(inputs):
        if tensor.dim() > 0:
            return int(tensor.shape[0])
    raise TraceError(
        "example_inputs() holds no tensor with a batch axis",
        expected="a tuple or mapping of tensors, samples along the first axis",
    )


def grown(inputs: Any, batch: int, by: int = 1) -> Any:
    """The inputs with their first sample `by` more times."""

    def grow(value: Any) -> Any:
        follows = isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == batch
        return torch.cat([value, *[value[:1]] * by]) if follows else value

    return mapped(inputs, grow)


def input_names(model: nn.Module, inputs: Any) -> Named:
    """What to call each tensor of a batch, with its path.

    Keyword arguments keep their names, positional ones have those of `forward`; entries of nested
    structures are called `image_mask`.

    Raises:
        TraceError: `forward` does not take such arguments.
    """
    tops = _top_names(model, inputs)
    names: dict[str, Path] = {}
    for path, _ in tensors_by_path(inputs):
        stem = "_".join([tops[path[0]], *(str(key) for key in path[1:])])
        name = _identifier(stem)
        while name in names:
            name += "_"
        names[name] = path
    return tuple(names.items())


def _leaves(value: Any, path: Path) -> Iterator[tuple[Path, Any]]:
    if isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _leaves(entry, (*path, key))
    elif isinstance(value, tuple | list):
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*path, index))
    else:
        yield path, value


def _top_names(model: nn.Module, inputs: Any) -> dict[str | int, str]:
    """The name of each argument, by keyword or by position."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    if isinstance(inputs, Mapping):
        known = [p.name for p in parameters if p.kind is not p.VAR_POSITIONAL]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
        for key in inputs:
            if key not in known and not open_ended:
                raise TraceError(
                    f"example_inputs() gives {key!r}, which {type(model).__name__}.forward "
                    "does not take",
                    expected=f"keywords among {', '.join(known)}",
                )
        return {key: key for key in inputs}
    count = len(inputs)
    names: list[str] = []
    for parameter in parameters:
        if parameter.kind is parameter.VAR_POSITIONAL:
            names += [f"{parameter.name}_{i}" for i in range(count - len(names))]
        elif parameter.kind not in (parameter.KEYWORD_ONLY, parameter.VAR_KEYWORD):
            names.append(parameter.name)
    if len(names) < count:
        raise TraceError(
            f"example_inputs() gives {count} inputs, {type(model).__name__}.forward takes "
            f"{len(names)}",
            expected=f"at most {len(names)} inputs: {', '.join(names)}",
        )
    return dict(enumerate(names[:count]))


def _identifier(stem: str) -> str:
    name = re.sub(r"\W", "_", stem)
    if name[:1].isdigit() or keyword.iskeyword(name):
        name = f"_{name}"
    return name
