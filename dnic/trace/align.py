"""Compare two recordings of one model, and mark what is not a constant.

A recording writes down what happened. Recorded again with one more sample, a size that follows the
batch comes out larger; recorded again in eval mode, a flag that follows the mode comes out
different. Both would otherwise be frozen into the emitted code: a wrong batch size is an error at
best and silently wrong at worst (`view(2, -1)`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import fx

from dnic.trace.diff import differences
from dnic.trace.obstacle import Misaligned, OtherInMode
from dnic.trace.recorded import Recorded, recorded


class BatchSize(int):
    """An `int` that is `multiple` entries for every sample and `more` besides.

    Its value is the one at tracing.
    """

    multiple: int
    more: int

    def __new__(cls, value: int, multiple: int, more: int = 0) -> BatchSize:
        """The recorded value and what it means."""
        size = super().__new__(cls, value)
        size.multiple = multiple
        size.more = more
        return size

    def __repr__(self) -> str:
        return f"{self.multiple}*B" + (f"{self.more:+}" if self.more else "")


class BatchShare(float):
    """A `float` that is `whole` divided by the number of samples, such as the weight in a mean."""

    whole: float

    def __new__(cls, value: float, whole: float) -> BatchShare:
        """The recorded value and what it means."""
        share = super().__new__(cls, value)
        share.whole = whole
        return share

    def __repr__(self) -> str:
        return f"{self.whole}/B"


@dataclass(frozen=True)
class ModeSwitch:
    """A constant that is one thing in train mode and another in eval mode."""

    train: Any
    evaluation: Any


def align_batch(small: fx.Graph, large: fx.Graph, batches: tuple[int, int]) -> None:
    """Turn constants of `small` that follow the batch into `BatchSize` or `BatchShare`, in place.

    Two recordings allow any straight line; only those are taken that a model means: `c * B`,
    `c * B + d` with a small `d` (a token more), `c / B`. A third size is tried by the proof.

    Raises:
        Misaligned: other operations ran, or a constant changed in another way than with the batch.
    """

    def merge(a: Any, b: Any, facts: Recorded) -> Any:
        if type(a) is int and type(b) is int:
            multiple = (b - a) // (batches[1] - batches[0])
            more = a - multiple * batches[0]
            if b == multiple * batches[1] + more and abs(more) <= multiple:
                return BatchSize(a, multiple, more)
        if type(a) is float and type(b) is float:
            whole = a * batches[0]
            if abs(whole - b * batches[1]) <= 1e-12 * abs(whole):
                return BatchShare(a, whole)
        raise Misaligned(f"{a!r} became {b!r} with one more sample", facts.scope, facts.source)

    _align(small, large, merge, "with one more sample in the batch")


def align_mode(train: fx.Graph, evaluation: fx.Graph) -> None:
    """Turn constants of `train` that follow the mode into `ModeSwitch`, in place.

    Raises:
        Misaligned: eval mode runs other operations.
    """

    def merge(a: Any, b: Any, facts: Recorded) -> Any:
        return ModeSwitch(a, b)

    for nodes, mode in differences(train, evaluation):
        facts = recorded(nodes[0])
        scope = _caller(nodes[0])
        raise OtherInMode(f"the model runs other operations in {mode} mode", scope, facts.source)
    try:
        _align(train, evaluation, merge, "in eval mode")
    except Misaligned as obstacle:
        raise OtherInMode(obstacle.what, obstacle.scope, obstacle.source) from None


def _caller(node: fx.Node) -> str:
    """Path of the module in whose forward an operation stands."""
    scope = recorded(node).scope
    return scope.rpartition(".")[0] if node.op == "call_module" else scope


def _align(first: fx.Graph, second: fx.Graph, merge: Any, when: str) -> None:
    ours, theirs = list(first.nodes), list(second.nodes)
    twin = {}
    for a, b in zip(ours, theirs, strict=False):
        facts = recorded(a)
        if (a.op, a.target) != (b.op, b.target):
            raise Misaligned(f"the model runs other operations {when}", facts.scope, facts.source)
        twin[b] = a
        a.args = _merged(a.args, b.args, twin, merge, facts)
        a.kwargs = _merged(a.kwargs, b.kwargs, twin, merge, facts)
    if len(ours) != len(theirs):
        longer = max((ours, theirs), key=len)
        facts = recorded(longer[min(len(ours), len(theirs))])
        raise Misaligned(f"the model runs other operations {when}", facts.scope, facts.source)


def _merged(a: Any, b: Any, twin: dict[fx.Node, fx.Node], merge: Any, facts: Recorded) -> Any:
    """`a` where both agree; `merge(a, b)` where two constants differ."""
    if isinstance(a, fx.Node) and isinstance(b, fx.Node):
        if twin.get(b) is not a:
            raise Misaligned("an operation takes another input", facts.scope, facts.source)
        return a
    if isinstance(a, dict) and isinstance(b, dict) and a.keys() == b.keys():
        return {key: _merged(a[key], b[key], twin, merge, facts) for key in a}
    if isinstance(a, tuple | list) and isinstance(b, tuple | list) and len(a) == len(b):
        return type(a)(_merged(x, y, twin, merge, facts) for x, y in zip(a, b, strict=True))
    if isinstance(a, slice) and isinstance(b, slice):
        ends = ((a.start, b.start), (a.stop, b.stop), (a.step, b.step))
        return slice(*(_merged(x, y, twin, merge, facts) for x, y in ends))
    if type(a) in (BatchSize, int) and type(b) is int and int(a) == b:
        return a
    if type(a) is BatchShare and type(b) is float and float(a) == b:
        return a
    if type(a) is type(b) and (a == b or (a != a and b != b)):
        return a
    if isinstance(a, fx.Node) or isinstance(b, fx.Node):
        raise Misaligned("an operation takes another input", facts.scope, facts.source)
    return merge(a, b, facts)


def shape_with_batch(
    small: tuple[int, ...], large: tuple[int, ...], batches: tuple[int, int]
) -> tuple[int | str, ...] | None:
    """The sizes of a tensor with those that follow the batch symbolic; None when they cannot be.

    `("B", 64)` from (4, 64) at 4 samples and (5, 64) at 5.
    """
    sizes: list[int | str] = []
    for a, b in zip(small, large, strict=True):
        multiple, rest = divmod(a, batches[0])
        if a == b:
            sizes.append(a)
        elif rest == 0 and b == multiple * batches[1]:
            sizes.append("B" if multiple == 1 else f"{multiple}*B")
        else:
            return None
    return tuple(sizes)
