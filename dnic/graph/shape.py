"""Shapes that know which of their sizes follow the batch.

A size is an `int` when it is fixed and a string when it scales with the batch: `"B"`, or `"64*B"`
for a size that holds 64 entries for every sample (`view(batch * 64, ...)`). Written so in
`plan.yaml`, in comments of emitted code and in pictures.
"""

from __future__ import annotations

from math import prod

Size = int | str
Shape = tuple[Size, ...]


def batch_multiple(size: Size) -> int:
    """How many entries of this size there are for every sample; 0 when the size is fixed."""
    if isinstance(size, int):
        return 0
    return 1 if size == "B" else int(size.removesuffix("*B"))


def scaled(multiple: int) -> Size:
    """The size that holds `multiple` entries for every sample."""
    return "B" if multiple == 1 else f"{multiple}*B"


def resolve(shape: Shape, batch_size: int) -> tuple[int, ...]:
    """The shape at one batch size."""
    return tuple(s if isinstance(s, int) else batch_multiple(s) * batch_size for s in shape)


def elements(shape: Shape, batch_size: int) -> int:
    """Number of elements at one batch size."""
    return prod(resolve(shape, batch_size))


def text(shape: Shape) -> str:
    """`[B, 64, 8, 8]`."""
    return "[" + ", ".join(str(size) for size in shape) + "]"
