"""What one recording knows of each operation: plain data beside every fx node (`node.meta`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx

KEY = "dnic"

Mode = Literal["", "train", "eval"]


@dataclass(frozen=True)
class TensorFacts:
    """The tensor that an operation yielded: sizes, dtype, bytes, whether a gradient flows."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    nbytes: int
    requires_grad: bool
    storage: int

    @classmethod
    def of(cls, tensor: Tensor) -> TensorFacts:
        """Read them off a tensor."""
        return cls(
            shape=tuple(tensor.shape),
            dtype=tensor.dtype,
            nbytes=tensor.numel() * tensor.element_size(),
            requires_grad=tensor.requires_grad,
            storage=storage_key(tensor),
        )


@dataclass(frozen=True)
class Recorded:
    """One recorded operation.

    Attributes:
        scope: dotted path of the module in whose `forward` it ran.
        module_class: class of the module that was called, or of the scope.
        event: half-open range of call numbers; calls of leaf modules and functions are counted in
            the order in which the model made them, and a coarse recording counts the same calls.
        tensor: facts of the tensor that it yielded, None when it yielded something else.
        items: how many items the result has when it is a tuple or a list.
        flops: floating point operations of the forward pass.
        bytes_read: bytes of the tensors it read, parameters included.
        mutated: keys of the storages that it changed in place.
        grad_enabled: False when it ran under `torch.no_grad()`.
        unsized: whether its sizes follow from values.
        mode: the one mode in which it runs; empty for both.
        source: `file:line` of the user's code.
    """

    scope: str = ""
    module_class: str = ""
    event: tuple[int, int] = (0, 0)
    tensor: TensorFacts | None = None
    items: int = 0
    flops: int = 0
    bytes_read: int = 0
    mutated: frozenset[int] = field(default_factory=frozenset)
    grad_enabled: bool = True
    unsized: bool = False
    mode: Mode = ""
    source: str = ""


def storage_key(tensor: Tensor) -> int:
    """Identity of the memory behind a tensor; views of one tensor share it."""
    return int(tensor.untyped_storage()._cdata)


def recorded(node: fx.Node) -> Recorded:
    """What the recording knows of `node`."""
    found: Recorded = node.meta[KEY]
    return found


def leaves(structure: Any) -> Iterator[Any]:
    """Every leaf of nested tuples, lists, mappings, dataclasses and slices, in order.

    fx's own `map_aggregate` maps but does not walk; torch's pytree does not open slices.
    """
    if isinstance(structure, Mapping):
        for value in structure.values():
            yield from leaves(value)
    elif isinstance(structure, tuple | list):
        for value in structure:
            yield from leaves(value)
    elif is_dataclass(structure) and not isinstance(structure, type):
        for part in fields(structure):
            yield from leaves(getattr(structure, part.name))
    elif isinstance(structure, slice):
        yield from (structure.start, structure.stop, structure.step)
    else:
        yield structure


def tensors_in(structure: Any) -> list[Tensor]:
    """Every tensor in a nested structure."""
    return [leaf for leaf in leaves(structure) if isinstance(leaf, Tensor)]
