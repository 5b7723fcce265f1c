"""Every operation of a captured model, timed: each kind once, at two batch sizes.

The capture runs once in training's order, so that every operation is met with the tensors that it
is given there: indices are in range, masks are masks, strides are the model's. What was met before
(the second of twelve equal blocks, or an earlier run of the program) is not timed again.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnic.cost.clock import Clock
from dnic.cost.kept import KeptTimes
from dnic.cost.operation import BUDGET_US, Key, Timing, key_of, time_call
from dnic.cost.walk import Call, smaller, walk
from dnic.errors import DnicError
from dnic.trace import TracedModel, as_compilers_see_it, seeded, storage_key, untouched
from dnic.trace import without_cache as without_kv

# A smaller batch for the part of an operation's time that does not shrink with the batch.
PARTS = 4


@dataclass
class Survey:
    """What was found.

    Attributes:
        count: samples of the smaller batch; 0 where the model ran at none.
        times: by operation at the full batch; `smaller` at the smaller one.
        saved_bytes: by operation, of the tensors that it is the first to keep for backward.
        unmeasured: operations that do not run on their own.
        new: times that were not known before, by key.
        keys: of the operations, in order.
        lasting: whether all keys mean the same in another run of the program.
    """

    count: int = 0
    times: dict[str, Timing] = field(default_factory=dict)
    smaller: dict[str, Timing] = field(default_factory=dict)
    saved_bytes: dict[str, int] = field(default_factory=dict)
    unmeasured: list[str] = field(default_factory=list)
    new: dict[str, tuple[list[float], bool]] = field(default_factory=dict)
    keys: list[str] = field(default_factory=list)
    lasting: bool = True


def survey(
    traced: TracedModel,
    inputs: Any,
    known: KeptTimes,
    clock: Clock,
    budget_us: float = BUDGET_US,
    progress: Callable[[str], None] | None = None,
) -> Survey:
    """Run a capture at the full batch and at a quarter of it, and time what is not known.

    Model and random state are as before afterwards.

    Args:
        traced: the fine capture; its model may be on the meta device.
        inputs: the example inputs.
        known: times from earlier runs; new ones are put there too.
        clock: of the device.
        budget_us: for each operation at each batch size.
        progress: told the name of each operation that is timed.

    Raises:
        DnicError: the capture does not run on these inputs.
    """
    found = Survey()
    batch = traced.batch_size
    with as_captured(traced):
        visitor = _Visitor(known, clock, budget_us, progress, found)
        visitor.times = found.times
        walk(traced, inputs, batch, visitor)
        found.saved_bytes = visitor.saved_bytes(traced.module, found)
    for count in dict.fromkeys((batch // PARTS, batch // 2)):
        if 0 < count < batch:
            again = _Visitor(known, clock, budget_us, progress, Survey())
            again.times = again.found.times
            try:
                with as_captured(traced):
                    walk(traced, smaller(inputs, batch, count), count, again)
            except DnicError:
                continue  # Normalising one sample alone, for one: a batch of two may do.
            found.count, found.smaller = count, again.times
            found.new |= again.found.new
            found.lasting = found.lasting and again.found.lasting
            break
    return found


def as_captured(traced: TracedModel) -> AbstractContextManager[None]:
    """The settings of a capture in train mode; the model and chance are put back afterwards."""
    stack = ExitStack()
    stack.enter_context(seeded())
    stack.enter_context(untouched(traced.module))
    stack.enter_context(without_kv(traced.module))
    stack.enter_context(as_compilers_see_it(bool(traced.compiling)))
    traced.module.train()
    return stack  # type: ignore[return-value]  # it yields itself, which nobody looks at


class _Visitor:
    """Runs each call of a walk, timing those whose key is new."""

    times: dict[str, Timing]

    def __init__(
        self,
        known: KeptTimes,
        clock: Clock,
        budget_us: float,
        progress: Callable[[str], None] | None,
        found: Survey,
    ) -> None:
        self._known = known
        self._clock = clock
        self._budget_us = budget_us
        self._progress = progress
        self._saved: dict[str, list[Tensor]] = {}
        self.found = found

    def __call__(self, call: Call) -> Any:
        name = call.node.name
        timing = self._timing(call, key_of(call))
        if timing is None:
            self.found.unmeasured.append(name)
        else:
            self.times[name] = timing
        kept = self._saved.setdefault(name, [])

        def pack(tensor: Tensor) -> Tensor:
            kept.append(tensor.detach())
            return tensor

        if call.mutates:
            return call.run()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            return call.run()

    def saved_bytes(self, model: nn.Module, found: Survey) -> dict[str, int]:
        """Bytes that each operation is the first to save; weights are not counted."""
        seen = {storage_key(tensor) for tensor in (*model.parameters(), *model.buffers())}
        saved = {}
        for name, tensors in self._saved.items():
            total = 0
            for tensor in tensors:
                key = storage_key(tensor)
                if key not in seen:
                    seen.add(key)
                    total += tensor.untyped_storage().nbytes()
            saved[name] = total
        return saved

    def _timing(self, call: Call, key: Key) -> Timing | None:
        self.found.keys.append(key.digest)
        self.found.lasting = self.found.lasting and key.lasting
        if key.digest not in self._known:
            if self._progress is not None:
                self._progress(call.node.name)
            try:
                timing = time_call(call, self._clock, self._budget_us)
            except (RuntimeError, TypeError, ValueError, LookupError, AttributeError):
                return None
            numbers = [timing.forward_us, timing.backward_us]
            self._known.put(key.digest, numbers, lasting=key.lasting)
            self.found.new[key.digest] = (numbers, key.lasting)
        forward_us, backward_us = self._known[key.digest]
        return Timing(forward_us, backward_us)
