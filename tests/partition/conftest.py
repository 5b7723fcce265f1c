"""Graphs built by hand: chains, skips, random models, and their coarse captures."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest

from dnic.cost import DeviceProfile, Link
from dnic.graph.graph import Graph, Operation, Value, Weight

BATCH = 4


def make_operation(
    name: str,
    inputs: tuple[str, ...] = (),
    *,
    kind: str = "module",
    module: str | None = None,
    shape: tuple[int | str, ...] | None = ("B", 16),
    dtype: str = "float32",
    differentiable: bool = True,
    parameters: tuple[str, ...] = (),
    parameter_bytes: int = 0,
    flops: int = 1_000_000,
) -> Operation:
    """One operation; a module unless told otherwise. `shape` None yields no tensor."""
    value = None
    if shape is not None:
        count = 1
        for size in shape:
            count *= BATCH if size == "B" else int(size)
        value = Value(name, shape, dtype, 4 * count, differentiable)
    if module is None:
        module = name if kind == "module" else ""
    computed = kind not in ("input", "attribute", "output")
    return Operation(
        name=name,
        kind=kind,  # type: ignore[arg-type]  # a literal that the caller wrote
        target=module if kind == "module" else name,
        module=module,
        module_class="Linear" if kind == "module" else "",
        inputs=inputs,
        value=value,
        parameters=parameters,
        parameter_bytes=parameter_bytes,
        forward_flops=flops if computed else 0,
        bytes_moved=1000 if computed else 0,
    )


def make_graph(
    operations: list[Operation],
    blocked: dict[int, str] | None = None,
    weights: dict[str, Weight] | None = None,
) -> Graph:
    """A graph whose spans count its own positions: a fine one.

    Parameters that `weights` does not name are trained and have no aliases.
    """
    spanned = tuple(replace(op, span=(i, i + 1)) for i, op in enumerate(operations))
    known = {
        name: Weight(name, (), op.parameter_bytes // len(op.parameters), trained=True)
        for op in operations
        for name in op.parameters
    }
    return Graph("Net", BATCH, spanned, blocked or {}, known | (weights or {}))


def make_chain(
    flops: list[int], module: str = "layers.{}", shape: tuple[int | str, ...] = ("B", 16)
) -> Graph:
    """`layers.0`, `layers.1`, ... one after the other, each with a parameter of its own."""
    operations = [make_operation("x", kind="input", differentiable=False)]
    for i, cost in enumerate(flops):
        path = module.format(i)
        operations.append(
            make_operation(
                path.replace(".", "_"),
                (operations[-1].name,),
                module=path,
                shape=shape,
                parameters=(f"{path}.weight",),
                parameter_bytes=1024,
                flops=cost,
            )
        )
    operations.append(make_operation("output", (operations[-1].name,), kind="output", shape=None))
    return make_graph(operations)


def make_random(seed: int, blocks: int) -> Graph:
    """A model of blocks of one to four operations, with skips, side inputs and functions."""
    pick = random.Random(seed)
    operations = [make_operation("x", kind="input", differentiable=False)]
    stream = "x"
    for b in range(blocks):
        made: list[str] = []
        for k in range(pick.randint(1, 4)):
            source = made[-1] if made else stream
            older = pick.choice(operations).name
            inputs = (source, older) if pick.random() < 0.3 and older != source else (source,)
            name = f"blocks_{b}_{k}"
            scope = f"blocks.{b}"
            is_module = pick.random() < 0.7
            if pick.random() < 0.15:
                path = f"{scope}.table{k}"
                operations.append(
                    make_operation(
                        f"table_{b}_{k}", kind="attribute", module=path, differentiable=False
                    )
                )
                inputs = (*inputs, f"table_{b}_{k}")
            operations.append(
                make_operation(
                    name,
                    inputs,
                    kind="module" if is_module else "function",
                    module=f"{scope}.{k}" if is_module else scope,
                    differentiable=pick.random() < 0.9,
                    parameters=(f"{scope}.{k}.weight",) if is_module else (),
                    parameter_bytes=1024 if is_module else 0,
                    flops=pick.randint(1, 20) * 1_000_000,
                )
            )
            made.append(name)
        stream = made[-1]
    operations.append(make_operation("output", (stream,), kind="output", shape=None))
    return make_graph(operations)


def coarsen(fine: Graph, cuts: tuple[int, ...]) -> Graph:
    """The coarse capture: every outermost module that no cut opens is one operation."""
    leaf = {i: _leaf(fine, i, cuts) for i in range(len(fine.operations))}
    renamed: dict[str, str] = {}
    operations: list[Operation] = []
    position = 0
    while position < len(fine.operations):
        end = position + 1
        path = leaf[position]
        while path and end < len(fine.operations) and leaf[end] == path:
            end += 1
        inside = fine.operations[position:end]
        last = inside[-1]
        for op in inside:
            renamed[op.name] = last.name
        names = [renamed[n] for op in inside for n in op.inputs]
        operations.append(
            replace(
                last,
                kind="module" if path else last.kind,
                target=path or last.target,
                module=path or last.module,
                inputs=tuple(n for n in dict.fromkeys(names) if n != last.name),
                parameters=tuple(p for op in inside for p in op.parameters),
                parameter_bytes=sum(op.parameter_bytes for op in inside),
                span=(position, end),
            )
        )
        position = end
    return Graph(fine.name, fine.batch_size, tuple(operations), weights=fine.weights)


def _leaf(fine: Graph, position: int, cuts: tuple[int, ...]) -> str:
    op = fine.operations[position]
    parts = op.module.split(".") if op.module else []
    for depth in range(1, len(parts) + 1):
        path = ".".join(parts[:depth])
        inside = [
            i
            for i, other in enumerate(fine.operations)
            if other.module == path or other.module.startswith(path + ".")
        ]
        first, last = inside[0], inside[-1]
        whole = inside == list(range(first, last + 1))
        uncut = not any(first < gap <= last for gap in cuts)
        leaves = [i for i in inside if fine.last_use[fine.operations[i].name] > last]
        if whole and uncut and leaves in ([], [last]):
            return path
    return ""


@pytest.fixture(scope="session")
def operation() -> Callable[..., Operation]:
    """Builder of operations."""
    return make_operation


@pytest.fixture(scope="session")
def graph_of() -> Callable[..., Graph]:
    """Builder of graphs from operations."""
    return make_graph


@pytest.fixture(scope="session")
def chain() -> Callable[..., Graph]:
    """Builder of chains of modules."""
    return make_chain


@pytest.fixture(scope="session")
def random_graph() -> Callable[[int, int], Graph]:
    """Builder of random models."""
    return make_random


@pytest.fixture(scope="session")
def coarse_of() -> Callable[[Graph, tuple[int, ...]], Graph]:
    """Builder of coarse captures."""
    return coarsen


@pytest.fixture(scope="session")
def device() -> DeviceProfile:
    """A device of round numbers: 1 us for a million FLOPs, 1 GB/s of memory, 1 us of overhead."""
    link = Link(name="wire", bandwidth_bytes_per_s=1e9, latency_us=5.0)
    return DeviceProfile(
        name="round",
        flops_per_s=1e12,
        bytes_per_s=1e12,
        overhead_us=1.0,
        message_bytes_per_s=1e12,
        link=link,
    )
