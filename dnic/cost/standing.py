"""Operations timed where they stand: the whole model, one operation after another, and back.

An operation that is repeated alone finds everything in the cache, and asks the system for memory
that a model has at hand (or the other way round): on small models such times are off by a factor of
two or three, differently for each kind. Here each operation has the memory and the caches that it
has in training, because all others run in between. It needs the weights and the memory of a
training step; `survey` does without.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dnic.cost.clock import Clock, repeated, typical
from dnic.cost.operation import Timing, empty_backward_us, map_leaves
from dnic.cost.survey import as_captured
from dnic.cost.walk import Call, walk
from dnic.runtime.plan import Precision
from dnic.runtime.precision import autocast
from dnic.trace import TracedModel, tensors_in

_BUDGET_US = 0.6e6
_MOST = 40


def time_standing(
    traced: TracedModel,
    inputs: Any,
    batch_size: int,
    clock: Clock,
    budget_us: float = _BUDGET_US,
    precision: Precision = "fp32",
) -> dict[str, Timing]:
    """Every operation of one training step at this batch size; model and chance stay as they are.

    Args:
        traced: the capture of a model with weights.
        inputs: a batch.
        batch_size: samples in it.
        clock: of the device.
        budget_us: for all repetitions together; one is always made.
        precision: in which operations run.

    Raises:
        DnicError, RuntimeError: the capture does not run on these inputs, or not backward.
    """
    names: list[str] = []

    def once() -> list[float]:
        run = _Run(clock, precision)
        output = walk(traced, inputs, batch_size, run.forward)
        run.backward(output)
        names[:] = [done.name for done in run.done]
        return [us for done in run.done for us in (done.forward_us, done.backward_us)]

    with as_captured(traced):
        phases = repeated(once, budget_us, least=1, most=_MOST)
    empty_us = empty_backward_us(clock)
    times = [typical(phase) for phase in phases]
    return {
        name: Timing(times[2 * i], max(times[2 * i + 1] - empty_us, 0.0))
        for i, name in enumerate(names)
    }


@dataclass
class _Done:
    """An operation that ran, with a graph of its own from `leaves` and `weights` to `ends`."""

    name: str
    forward_us: float
    leaves: list[Tensor] = field(default_factory=list)
    origins: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    ends: list[Tensor] = field(default_factory=list)
    backward_us: float = 0.0


class _Run:
    """One training step, each operation cut off from the one before."""

    def __init__(self, clock: Clock, precision: Precision = "fp32") -> None:
        self._clock = clock
        self._precision = precision
        self._gradients: dict[int, Tensor] = {}
        self._held: list[Any] = []
        self.done: list[_Done] = []

    def forward(self, call: Call) -> Any:
        """Run one operation on cut tensors."""
        done = _Done(call.node.name, 0.0)
        made: dict[int, Tensor] = {}

        def cut(leaf: Any) -> Any:
            asks = isinstance(leaf, Tensor) and leaf.requires_grad and call.grad
            if not asks:
                return leaf
            if isinstance(leaf, nn.Parameter):
                done.weights.append(leaf)
                return leaf
            if id(leaf) not in made:
                made[id(leaf)] = leaf.detach().requires_grad_()
                done.leaves.append(made[id(leaf)])
                done.origins.append(leaf)
            return made[id(leaf)]

        args, kwargs = map_leaves(call.args, cut), map_leaves(call.kwargs, cut)
        if call.mutates:
            args, kwargs = map_leaves(args, _copied), map_leaves(kwargs, _copied)
        if isinstance(call.function, nn.Module):
            done.weights += [p for p in call.function.parameters() if p.requires_grad]
        with (
            torch.set_grad_enabled(call.grad),
            autocast(self._precision, self._clock.device),
        ):
            start = self._clock()
            out = call.function(*args, **kwargs)
            done.forward_us = self._clock.between(start, self._clock())
        self.done.append(done)
        # Taking an item out of a tuple yields what was put in: not a result of its own.
        whose = {id(leaf): o for leaf, o in zip(done.leaves, done.origins, strict=True)}
        done.ends = [
            t for t in tensors_in(out) if t.requires_grad and t.grad_fn and id(t) not in whose
        ]
        return map_leaves(out, lambda leaf: whose.get(id(leaf), leaf))

    def backward(self, output: Any) -> None:
        """The way back from noise at the outputs, operation by operation."""
        for tensor in tensors_in(output):
            if tensor.requires_grad:
                self._add(tensor, torch.randn_like(tensor))
        for done in reversed(self.done):
            ends = [end for end in done.ends if id(end) in self._gradients]
            sources = [*done.leaves, *dict.fromkeys(done.weights)]
            if not ends or not sources:
                continue
            gradients = [self._gradients.pop(id(end)) for end in ends]
            start = self._clock()
            found = torch.autograd.grad(ends, sources, gradients, allow_unused=True)
            done.backward_us = self._clock.between(start, self._clock())
            del gradients
            self._pass_on(done, found)
            done.ends, done.leaves, done.origins = [], [], []

    def _pass_on(self, done: _Done, found: Sequence[Tensor | None]) -> None:
        count = len(done.origins)
        for origin, gradient in zip(done.origins, found[:count], strict=True):
            if gradient is not None:
                self._add(origin, gradient)
        # As in training: gradients of weights stay until the update.
        self._held.append(found[count:])

    def _add(self, tensor: Tensor, gradient: Tensor) -> None:
        known = self._gradients.get(id(tensor))
        self._gradients[id(tensor)] = gradient if known is None else known + gradient


def _copied(leaf: Any) -> Any:
    return leaf.clone() if isinstance(leaf, Tensor) else leaf
