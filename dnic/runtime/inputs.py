"""How one batch is handed to the model, and where in it the tensors lie that the stages take.

A batch is a tuple (positional arguments) or a mapping (keyword arguments) of tensors nested in
tuples, lists and mappings. The stages take single tensors; the plan knows each one's path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from dnic.errors import RuntimeFault

Key = str | int
Path = tuple[Key, ...]
Constants = Sequence[tuple[Path, Any]]


def leaf(batch: Any, path: Path) -> Any:
    """The entry of a batch at a path such as `("input_ids",)` or `(0, "mask")`.

    Raises:
        RuntimeFault: the batch has no such entry.
    """
    value = batch
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            raise RuntimeFault(
                f"a batch has no {path_text(path)}",
                where="model.py",
                expected="samples with the same inputs as example_inputs() gives",
            ) from None
    return value


def invoke(model: nn.Module, batch: Any, constants: Constants = ()) -> Any:
    """Call a model on a batch.

    Args:
        model: any module.
        batch: a tuple of positional arguments or a mapping of keyword arguments.
        constants: plain arguments that no sample carries, by their path (`use_cache: False`);
            entries of the batch win.
    """
    if isinstance(batch, Mapping):
        plain = {path[0]: value for path, value in constants if len(path) == 1}
        return model(**{str(key): value for key, value in (plain | dict(batch)).items()})
    given = list(batch)
    for path, value in sorted(constants, key=lambda constant: str(constant[0])):
        if len(path) == 1 and path[0] == len(given):
            given.append(value)
    return model(*given)


def path_text(path: Path) -> str:
    """`input_ids`, `image["mask"]`, `input 0`."""
    first, *rest = path
    text = first if isinstance(first, str) else f"input {first}"
    return text + "".join(f"[{key!r}]" for key in rest)
