"""What a picture shows of a stage: its operations as rows, framed by the modules they run in.

A stage of a real model has too many operations to read. While there are more than `limit` rows,
repeated blocks become one row or frame with a count, then the innermost modules become rows; where
that does not do, the middle is left out. Every operation still belongs to exactly one row, so no
edge between rows is lost.

This looks only at names, classes and sizes; it does not prove that repeated blocks are equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

from dnic.partition.plan import PlannedOperation

RowKind = Literal["module", "function", "input", "output", "omitted"]

LONGEST_PERIOD = 6


@dataclass(frozen=True)
class Row:
    """One or more operations drawn as one box.

    `detail` is the class of a module. `count` says how many equal blocks the row stands for.
    `first` and `last` are the dotted paths of the first and last module that it stands for.
    """

    kind: RowKind
    label: str
    detail: str
    operations: tuple[PlannedOperation, ...]
    first: str = ""
    last: str = ""
    count: int = 1


@dataclass(frozen=True)
class Frame:
    """A module, or a repeated sequence of modules (`count` times), drawn around its rows."""

    label: str
    detail: str
    items: tuple[Row | Frame, ...]
    first: str = ""
    last: str = ""
    count: int = 1


Item = Row | Frame


def outline(operations: Sequence[PlannedOperation], limit: int = 12) -> tuple[Item, ...]:
    """The rows and frames of a stage: at most `limit` rows, or half more if nothing repeats."""
    shown = _without_sizes(operations)
    items = _framed(shown, _frame_classes(shown), "")
    if row_count(items) > limit:
        items = _with_repeats(items)
    while row_count(items) > limit and (depth := _depth(items)):
        items = _with_repeats(_folded(items, depth))
    if row_count(items) > limit + limit // 2:
        items = _without_middle(items, limit)
    return items


def rows(items: Sequence[Item]) -> tuple[Row, ...]:
    """All rows in the order in which they are drawn."""
    found: list[Row] = []
    for item in items:
        found += [item] if isinstance(item, Row) else rows(item.items)
    return tuple(found)


def row_count(items: Sequence[Item]) -> int:
    """How many rows are drawn."""
    return len(rows(items))


def _without_sizes(operations: Sequence[PlannedOperation]) -> list[PlannedOperation]:
    """Drops what only computes sizes or picks from tuples; its users use its inputs instead."""
    stand_ins: dict[str, tuple[str, ...]] = {}
    shown = []
    for op in operations:
        inputs = tuple(
            dict.fromkeys(name for given in op.inputs for name in stand_ins.get(given, (given,)))
        )
        if op.shape is None and op.kind in ("function", "method") and not op.parameters:
            stand_ins[op.name] = inputs
        else:
            shown.append(op.model_copy(update={"inputs": inputs}))
    return shown


def _parents(path: str) -> list[str]:
    """`a.b.c` gives `a`, `a.b`."""
    parts = path.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts))]


def _containers(op: PlannedOperation) -> list[str]:
    """The modules in whose `forward` an operation ran, outermost first."""
    if op.kind == "module":
        return _parents(op.target)
    return [*_parents(op.module), op.module] if op.module else []


def _frame_classes(operations: Sequence[PlannedOperation]) -> dict[str, str]:
    """The modules worth a frame, with their class where it is known.

    Lists of layers (children all numbered) and modules that hold the whole stage or one operation
    say nothing that the names do not say.
    """
    inner = [op for op in operations if op.kind not in ("input", "output")]
    members: dict[str, int] = {}
    speaking: dict[str, str] = {}
    for op in inner:
        containers = _containers(op)
        path = op.target if op.kind == "module" else op.module
        if op.kind != "module" and path:
            speaking[path] = op.module_class
        for container, child in zip(containers, [*containers, path][1:], strict=True):
            members[container] = members.get(container, 0) + 1
            if child != container and not child.rpartition(".")[2].isdigit():
                speaking.setdefault(container, "")
    return {p: c for p, c in speaking.items() if 1 < members.get(p, 0) < len(inner)}


def _framed(
    operations: Sequence[PlannedOperation], classes: dict[str, str], inside: str
) -> tuple[Item, ...]:
    def next_frame(op: PlannedOperation) -> str:
        frames = [path for path in _containers(op) if path in classes]
        deeper = frames[frames.index(inside) + 1 :] if inside else frames
        return deeper[0] if deeper else ""

    items: list[Item] = []
    for path, members in groupby(operations, next_frame):
        if path:
            content = _framed(list(members), classes, path)
            label = path.removeprefix(inside + ".")
            items.append(Frame(label, classes[path], content, path, path))
        else:
            items += [_row(op, inside) for op in members]
    return tuple(items)


def _row(op: PlannedOperation, inside: str) -> Row:
    if op.kind == "module":
        label = op.target.removeprefix(inside + ".")
        return Row("module", label, op.module_class, (op,), op.target, op.target)
    if op.kind == "input":
        return Row("input", op.name, "", (op,))
    if op.kind == "output":
        return Row("output", "output", "", (op,))
    label = op.target if op.kind == "attribute" else op.target.rpartition(".")[2]
    return Row("function", label or op.name, "", (op,))


def _signature(item: Item) -> tuple[object, ...]:
    """What two blocks share when one may stand for the other."""
    if isinstance(item, Frame):
        return (item.detail, item.count, *(_signature(inner) for inner in item.items))
    sizes = tuple((op.parameters, op.shape) for op in item.operations)
    return (item.kind, item.detail or item.label, item.count, sizes)


def _with_repeats(items: Sequence[Item]) -> tuple[Item, ...]:
    """Puts one block in the place of several equal ones that follow one another."""
    items = [
        replace(item, items=_with_repeats(item.items)) if isinstance(item, Frame) else item
        for item in items
    ]
    signatures = [_signature(item) for item in items]
    result: list[Item] = []
    start = 0
    while start < len(items):
        period, count = _longest_repeat(items, signatures, start)
        if count > 1:
            blocks = [items[start + i * period : start + (i + 1) * period] for i in range(count)]
            result.append(_repeated(blocks))
        else:
            result.append(items[start])
        start += period * count
    return tuple(result)


def _longest_repeat(
    items: Sequence[Item], signatures: list[tuple[object, ...]], start: int
) -> tuple[int, int]:
    """Length and number of the equal blocks from `start` on that save the most rows."""
    best, most_saved = (1, 1), 1
    for period in range(1, LONGEST_PERIOD + 1):
        block = signatures[start : start + period]
        count = 1
        while signatures[start + count * period : start + (count + 1) * period] == block:
            count += 1
        saved = row_count(items[start : start + period]) * (count - 1)
        if saved > most_saved:
            best, most_saved = (period, count), saved
    return best


def _repeated(blocks: Sequence[Sequence[Item]]) -> Item:
    merged = tuple(_merged(same) for same in zip(*blocks, strict=True))
    first = next((item.first for item in blocks[0] if item.first), "")
    last = next((item.last for item in reversed(blocks[-1]) if item.last), "")
    label = f"{first} … {last}" if first else merged[0].label
    if len(merged) == 1:
        return replace(merged[0], label=label, first=first, last=last, count=len(blocks))
    return Frame(label, "", merged, first, last, len(blocks))


def _merged(same: Sequence[Item]) -> Item:
    """The first of several equal items, standing for the operations of all."""
    first = same[0]
    if isinstance(first, Row):
        operations = tuple(op for row in same if isinstance(row, Row) for op in row.operations)
        return replace(first, operations=operations)
    contents = zip(*(frame.items for frame in same if isinstance(frame, Frame)), strict=True)
    return replace(first, items=tuple(_merged(items) for items in contents))


def _depth(items: Sequence[Item]) -> int:
    return max((1 + _depth(item.items) for item in items if isinstance(item, Frame)), default=0)


def _folded(items: Sequence[Item], depth: int) -> tuple[Item, ...]:
    """Makes a row of every frame at this depth."""
    result: list[Item] = []
    for item in items:
        if isinstance(item, Frame) and depth == 1:
            operations = tuple(op for row in rows(item.items) for op in row.operations)
            detail = item.detail or f"{len(operations) // item.count} operations"
            result.append(
                Row("module", item.label, detail, operations, item.first, item.last, item.count)
            )
        elif isinstance(item, Frame):
            result.append(replace(item, items=_folded(item.items, depth - 1)))
        else:
            result.append(item)
    return tuple(result)


def _without_middle(items: tuple[Item, ...], limit: int) -> tuple[Item, ...]:
    before, after = (limit - 1) // 2, (limit - 1) - (limit - 1) // 2
    middle = rows(items[before : len(items) - after])
    operations = tuple(op for row in middle for op in row.operations)
    omitted = Row("omitted", f"… {len(operations)} more operations", "", operations)
    return (*items[:before], omitted, *items[len(items) - after :])
