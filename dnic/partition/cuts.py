"""Where a graph may be cut, what each place is called, and what a spec's names mean.

Of the n - 1 gaps between operations few are fit for a cut: only tensors may cross, and what the
capture forbade stays forbidden. A cut is called after the outermost module that ends there, so that
a person finds it in the model's source. A parameter that both sides use (tied weights) is kept in
step between the two, which costs its bytes on the link at every step.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cached_property
from itertools import pairwise

from dnic.errors import PartitionError, SpecError
from dnic.graph.graph import INSIDE_A_CALL, Graph, Operation, Value


@dataclass(frozen=True)
class CutPoint:
    """A gap that may be cut.

    Attributes:
        gap: the cut lies before this operation.
        after: dotted path of the outermost module that ends there, else the operation's name.
        tensors: what crosses, in execution order.
        opened: how many modules the cut falls inside of; fewer are easier to read.
        shared: names of the trained parameters that both sides use.
        shared_nbytes: their size.
    """

    gap: int
    after: str
    tensors: tuple[Value, ...]
    opened: int
    shared: tuple[str, ...] = ()
    shared_nbytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes that cross."""
        return sum(value.nbytes for value in self.tensors)

    @property
    def differentiable(self) -> tuple[Value, ...]:
        """The tensors through which a gradient flows back."""
        return tuple(value for value in self.tensors if value.differentiable)


@dataclass(frozen=True)
class CutTable:
    """Every gap of a graph: either a cut point, or the reason why not."""

    graph: Graph
    points: dict[int, CutPoint]
    refused: dict[int, str]

    def name(self, gap: int) -> str:
        """What the cut at `gap` is called; also for gaps that are no cut points."""
        return _name(self.graph, gap - 1, self._last)

    @cached_property
    def _last(self) -> dict[str, int]:
        return last_positions(self.graph)

    def gap_after(self, name: str, where: str) -> int:
        """The gap right after an operation, or after the last operation of a module.

        An operation's name wins over the path of a module.

        Args:
            name: the operation or the dotted path.
            where: the key of the spec, for the message.

        Raises:
            SpecError: neither exists; names the nearest.
        """
        positions = self.graph.position
        position = positions.get(name, self._last.get(name))
        if position is None:
            raise unknown_name(name, self.graph, where)
        gap = position + 1
        while self.graph.blocked.get(gap) == INSIDE_A_CALL:
            gap += 1  # After a call is after the items of its result, too.
        return gap


def is_computed(op: Operation) -> bool:
    """Whether an operation computes: no input, no parameter or buffer fetched, no output."""
    return op.kind not in ("input", "attribute", "output")


def cut_points(graph: Graph) -> CutTable:
    """Every gap that may be cut, and for each other one the reason."""
    points: dict[int, CutPoint] = {}
    refused: dict[int, str] = {}
    shared = _shared_parameters(graph)
    last = last_positions(graph)
    computed = [i for i, op in enumerate(graph.operations) if is_computed(op) and not op.free]
    following = dict(pairwise(computed))
    first_held, last_held = _held(graph)
    for gap, crossing in _crossings(graph):
        before = gap - 1
        reason = _why_not(graph, before, following, crossing)
        if not first_held < gap <= last_held:
            reason = reason or "no parameter is used on one side of it"
        reason = graph.blocked.get(gap) or reason
        if reason:
            refused[gap] = reason
            continue
        points[gap] = CutPoint(
            gap=gap,
            after=_name(graph, before, last),
            tensors=tuple(op.value for op in crossing if op.value is not None),
            opened=_common_depth(graph.operations[before], graph.operations[following[before]]),
            shared=shared.get(gap, ()),
            shared_nbytes=sum(graph.weights[name].nbytes for name in shared.get(gap, ())),
        )
    return CutTable(graph, points, refused)


def resolve_cuts(table: CutTable, names: Sequence[str], where: str) -> tuple[int, ...]:
    """The gaps that a spec's list of cuts names.

    Args:
        table: the gaps of the graph.
        names: module paths or operations' names, in execution order.
        where: the key of the spec, for messages.

    Raises:
        SpecError: a name that does not exist.
        PartitionError: a gap that may not be cut, or cuts out of order or twice.
    """
    gaps: list[int] = []
    for i, name in enumerate(names):
        here = f"{where}[{i}]"
        gap = table.gap_after(name, here)
        if gap not in table.points:
            reason = table.refused.get(gap, "nothing is computed after it")
            raise PartitionError(
                f"the model cannot be cut after {name}: {reason}",
                where=here,
                hint=_nearest_point(table, gap),
            )
        if gaps and gap <= gaps[-1]:
            same = gap == gaps[-1]
            raise PartitionError(
                f"the cut after {name} {'is the same as' if same else 'lies before'} "
                f"the cut after {names[i - 1]}",
                where=here,
                expected="cuts in execution order, each once",
            )
        gaps.append(gap)
    return tuple(gaps)


def resolve_groups(
    graph: Graph, groups: Sequence[Sequence[str]], where: str
) -> tuple[tuple[int, int], ...]:
    """For each group of module paths (or operations) the half-open range that it spans.

    Raises:
        SpecError: a name that does not exist.
    """
    ranges = []
    for i, group in enumerate(groups):
        positions: list[int] = []
        for name in group:
            inside = [
                p
                for p, op in enumerate(graph.operations)
                if is_computed(op) and (op.name == name or _is_under(op.module, name))
            ]
            if not inside:
                raise unknown_name(name, graph, f"{where}[{i}]")
            positions += inside
        if positions:
            ranges.append((min(positions), max(positions) + 1))
    return tuple(ranges)


def unknown_name(name: str, graph: Graph, where: str) -> SpecError:
    """The error for a module or operation that does not exist, with the nearest that does."""
    known = [*last_positions(graph), *(op.name for op in graph.operations if is_computed(op))]
    nearest = get_close_matches(name, dict.fromkeys(known), n=3, cutoff=0.4)
    return SpecError(
        f"{graph.name} has no module or operation {name!r}",
        where=where,
        expected="the dotted path of a module, or the name of an operation",
        hint=f"the nearest: {', '.join(nearest)}" if nearest else f"for example {known[0]}",
    )


def _crossings(graph: Graph) -> Iterator[tuple[int, tuple[Operation, ...]]]:
    """Every inner gap and what crosses it; `Graph.crossing` for all gaps in one sweep.

    Fetched parameters and buffers are left out, each side fetches its own; so are values that each
    side computes for itself.
    """
    live: dict[str, Operation] = {}
    for gap in range(1, len(graph.operations)):
        op = graph.operations[gap - 1]
        if op.kind != "attribute" and not op.free:
            live[op.name] = op
        for name in (op.name, *op.inputs):
            if graph.last_use[name] < gap:
                live.pop(name, None)
        yield gap, tuple(live.values())


def _why_not(
    graph: Graph, before: int, following: dict[int, int], crossing: tuple[Operation, ...]
) -> str:
    """Why the gap after the operation at `before` is no cut point; empty when it is one."""
    op = graph.operations[before]
    if not is_computed(op) or op.free:
        return f"{op.name} computes nothing from the inputs: no cut lies right after it"
    if before not in following:
        return "nothing is computed after it"
    if graph.last_use[op.name] == before:
        # A stage of nothing else would neither receive nor send.
        return "nobody uses its result"
    for held in crossing:
        if held.value is None:
            return f"{held.name} crosses it and is not a tensor"
    if not crossing:
        return "no tensor crosses it"
    return ""


def _held(graph: Graph) -> tuple[int, int]:
    """Positions of the first and the last operation that uses a parameter; all without any."""
    fetched = {op.name for op in graph.operations if op.kind == "attribute" and op.parameters}
    using = [
        i
        for i, op in enumerate(graph.operations)
        if op.kind != "attribute" and (op.parameters or fetched.intersection(op.inputs))
    ]
    return (using[0], using[-1]) if using else (-1, len(graph.operations))


def parameter_uses(graph: Graph) -> dict[str, list[int]]:
    """Positions of the operations that use each trained parameter, by its first name."""
    uses: dict[str, list[int]] = {}
    for i, op in enumerate(graph.operations):
        if op.kind == "attribute":
            continue
        fetched = [graph.by_name[name] for name in op.inputs]
        names = dict.fromkeys(op.parameters)
        names |= dict.fromkeys(n for f in fetched if f.kind == "attribute" for n in f.parameters)
        for name in names:
            if name in graph.weights and graph.weights[name].trained:
                uses.setdefault(name, []).append(i)
    return uses


def _shared_parameters(graph: Graph) -> dict[int, tuple[str, ...]]:
    """For each gap the trained parameters that are in use on both sides."""
    shared: dict[int, tuple[str, ...]] = {}
    for name, positions in parameter_uses(graph).items():
        for gap in range(positions[0] + 1, positions[-1] + 1):
            shared[gap] = (*shared.get(gap, ()), name)
    return shared


def _is_under(module: str, path: str) -> bool:
    return module == path or module.startswith(path + ".")


def _prefixes(module: str) -> list[str]:
    """`a`, `a.b`, `a.b.c` of `a.b.c`."""
    parts = module.split(".") if module else []
    return [".".join(parts[: i + 1]) for i in range(len(parts))]


def last_positions(graph: Graph) -> dict[str, int]:
    """Position of the last operation that ran inside each module."""
    return {
        prefix: i
        for i, op in enumerate(graph.operations)
        if is_computed(op)
        for prefix in _prefixes(op.module)
    }


def _name(graph: Graph, before: int, last: dict[str, int]) -> str:
    """What a cut after the operation at `before` is called; `gap_after` takes it back."""
    op = graph.operations[before]
    for path in _prefixes(op.module):
        if last[path] == before and graph.position.get(path, before) == before:
            return path
    return op.name


def _common_depth(before: Operation, after: Operation) -> int:
    """How many modules hold both operations: a cut between them falls inside these."""
    depth = 0
    for a, b in zip(before.module.split("."), after.module.split("."), strict=False):
        if a != b or not a:
            break
        depth += 1
    return depth


def _nearest_point(table: CutTable, gap: int) -> str | None:
    if not table.points:
        return None
    point = min(table.points.values(), key=lambda p: abs(p.gap - gap))
    return f"{point.after}, the nearest place for a cut"
