"""Every stage by itself, all at once: how fast stages could be that never wait for one another.

Each process runs its own stage: forward, backward, optimizer. What other stages would send lies in
its memory, made up once, in the planned shapes: inputs, the gradients of its outputs, at the last
stage the targets. The first stage reads the data as always. There are no messages and no heads, so
this trains nothing; it is what `dnic bench` calls the ceiling. Replicas of a stage take their share
of every batch, and average nothing.

A process that has done its steps goes on, uncounted, until all have: a core beside an idle one is
faster than a core beside a busy one, and no run that trains has idle neighbours.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import backward

from dnic.runtime.batches import Header, Share
from dnic.runtime.evaluation import Evaluation
from dnic.runtime.inputs import Batch
from dnic.runtime.links import dtype_named
from dnic.runtime.metrics import EpochFigures
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.plan import TensorSpec
from dnic.runtime.stopwatch import Stopwatch
from dnic.runtime.trainer import Trainer

# So small that hundreds of steps along the same made-up gradient leave finite parameters.
_GRADIENT_SCALE = 1e-4


class Alone(Trainer):
    """Runs one stage on made-up tensors."""

    def _train(self, header: Header, feed: Iterator[Batch]) -> EpochFigures:
        figures = EpochFigures(sent_bytes=0, in_flight_bytes=0)
        header = self.worker.replicas.part(header)
        sizes = {header.count.size(done) for done in range(header.count.messages)}
        made_up = {size: _MadeUp(self, header, size) for size in sizes}
        started = time.perf_counter()
        watch = self._stopwatch()
        inputs: list[Tensor] = []
        for done in range(header.count.messages):
            size = header.count.size(done)
            inputs = self._read(feed) if self._first else made_up[size].fresh_inputs()
            watch.lap("data")
            loss = self._step(inputs, made_up[size], watch)
            watch.tick()
            if loss is not None:
                self._count_loss(figures, loss, size)
            self.step += 1
        figures.seconds = self._seconds_since(started)
        figures.timed(watch)
        if inputs:
            self._keep_busy(inputs, made_up[header.count.size(header.count.messages - 1)])
        return figures

    def _share(self) -> Share | None:
        return self.worker.replicas.share

    def _read(self, feed: Iterator[Batch]) -> list[Tensor]:
        batch, target = next(feed)
        device = self.worker.device
        taken = self._inputs.take(batch, target.shape[0])
        return [part.to(device, non_blocking=True) for part in taken]

    def _step(self, inputs: list[Tensor], made_up: _MadeUp, watch: Stopwatch) -> Tensor | None:
        output = self.module(*inputs)
        loss = self._loss_of(output, made_up.target) if self._last else None
        clear_gradients(self.optimizer)
        watch.lap("forward")
        if loss is not None:
            backward([loss])
        else:
            outputs = output if isinstance(output, (tuple, list)) else (output,)
            backward(*made_up.roots(outputs))
        watch.lap("backward")
        self._update()
        watch.lap("update")
        return loss

    def _keep_busy(self, inputs: list[Tensor], made_up: _MadeUp) -> None:
        """Steps that nobody counts, until every process is where this one is."""
        board, place = self.worker.board, self.worker.place
        board.publish(f"alone/{self._phase}/{place.rank}", True)
        watch = Stopwatch()
        others = set(range(place.world_size))
        while True:
            others -= {r for r in others if board.peek(f"alone/{self._phase}/{r}") is not None}
            if not others:
                return
            self._step(inputs if self._first else made_up.fresh_inputs(), made_up, watch)

    def _evaluate(self, header: Header, feed: Iterator[Batch]) -> Evaluation | None:
        return None  # what was trained on is made up


class _MadeUp:
    """What the other stages would send for batches of one size.

    Attributes:
        target: the targets of a batch.
    """

    def __init__(self, trainer: Alone, header: Header, size: int) -> None:
        worker = trainer.worker
        plan, index = worker.bundle.plan, worker.place.stage
        generator = torch.Generator().manual_seed(worker.seed)
        device = worker.device

        def made(spec: TensorSpec, classes: int | None = None) -> Tensor:
            return _tensor(spec, size, classes, generator).to(device)

        classes = plan.target.classes if plan.target is not None else None
        self.target = made(header.target, classes)
        received = {
            spec.name: (spec, made(spec))
            for interface in plan.interfaces
            if interface.to == index
            for spec in interface.tensors
        }
        stage = plan.stages[index]
        self._inputs = [received[name] for name in stage.inputs] if index else []
        self._outputs = stage.outputs
        self._gradients: dict[str, Tensor] = {}
        for interface in plan.interfaces:
            if interface.source == index:
                for spec in interface.differentiable:
                    self._gradients[spec.name] = made(spec) * _GRADIENT_SCALE

    def fresh_inputs(self) -> list[Tensor]:
        """The inputs of a step; leaves, as the engine's are, where a gradient goes back."""
        return [
            tensor.detach().requires_grad_(spec.differentiable) for spec, tensor in self._inputs
        ]

    def roots(self, outputs: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs to go back from, and their gradients."""
        named = dict(zip(self._outputs, outputs, strict=True))
        used = [name for name in self._gradients if named[name].requires_grad]
        return [named[name] for name in used], [self._gradients[name] for name in used]


def _tensor(spec: TensorSpec, size: int, classes: int | None, generator: torch.Generator) -> Tensor:
    """Random numbers or classes; other whole numbers are 0, which is an index into anything."""
    shape, dtype = spec.resolve(size), dtype_named(spec.dtype)
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, dtype=dtype, generator=generator)
    if classes is not None:
        return torch.randint(classes, shape, dtype=dtype, generator=generator)
    return torch.zeros(shape, dtype=dtype)
