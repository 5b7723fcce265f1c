"""A bundle's stages under torch's own pipeline schedules, GPipe and 1F1B.

`torch.distributed.pipelining` runs the schedules; this gives it what it lacks: shapes from the plan
instead of a first pass through the model (which would draw random numbers and update BatchNorm), a
stage and a schedule for each batch size, evaluation beside training, and targets that travel from
the first process to the last, so that only the first reads data.

torch's schedules know chains only: a tensor that skips a stage, or a parameter in several stages,
is refused with the interface's name. A batch is cut into equal microbatches, as many as asked or
the next smaller divisor of its size; the gradient is the mean over them. So what depends on the
whole batch differs from backprop: BatchNorm, dropout masks, losses that are no mean over samples.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.distributed.pipelining.schedules import PipelineScheduleSingle

from dnic.errors import RuntimeFault
from dnic.runtime.batches import Header
from dnic.runtime.cells import Cell, cut_all
from dnic.runtime.evaluation import Evaluation, Score
from dnic.runtime.failure import lost_peers_named
from dnic.runtime.groups import groups
from dnic.runtime.inputs import Batch
from dnic.runtime.links import Link
from dnic.runtime.loss import Loss, own_loss
from dnic.runtime.metrics import EpochFigures
from dnic.runtime.microbatches import microbatches
from dnic.runtime.options import Mode
from dnic.runtime.plan import InterfacePlan, Plan
from dnic.runtime.stopwatch import Stopwatch
from dnic.runtime.trainer import Trainer
from dnic.runtime.transport import Transport
from dnic.runtime.worker import Worker

_TARGETS = 1  # the tag of the targets; torch's schedules use 0
_SLOTS = 2  # the first stage is at most one batch ahead of the last


@dataclass(frozen=True)
class _Batch:
    """How batches of one size run.

    Attributes:
        cell: the stage, for microbatches of one size.
        schedule: torch's.
        microbatches: in a batch.
    """

    cell: Cell
    schedule: PipelineScheduleSingle
    microbatches: int


class Pipelined(Trainer):
    """Trains one stage under one of torch's schedules."""

    def __init__(
        self, worker: Worker, stage: nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss
    ) -> None:
        super().__init__(worker, stage, optimizer, loss=loss)
        plan, rank = worker.bundle.plan, worker.place.rank
        chain = check_chain(plan, worker.options.mode)
        self._stages = len(plan.stages)
        self._below = chain[rank - 1] if not self._first else None
        self._above = chain[rank] if not self._last else None
        self._training: dict[int, _Batch] = {}
        self._scoring: dict[int, _Batch] = {}
        self._targets: deque[Tensor] = deque()  # of the microbatches to come, at the last stage
        self._outputs: list[Any] = []  # of an evaluation, at the last stage
        group, _ = groups(0, self._stages - 1, worker.device, worker.options.timeout_s)
        there = Link(self._stages - 1, _TARGETS, group, worker.device)
        here = Link(0, _TARGETS, group, worker.device)
        transport = Transport.of(worker)
        self._sender = transport.plain_sender(there, _SLOTS)
        self._receiver = transport.plain_receiver(here, _SLOTS)

    def _train(self, header: Header, feed: Iterator[Batch]) -> EpochFigures:
        figures = EpochFigures(waited_s=None)
        mode, asked = self.worker.options.mode, self.worker.options.microbatches
        check_microbatches(mode, header.count.batch_size, asked, self._stages)
        self._begin(header)
        started = time.perf_counter()
        watch = self._stopwatch()
        with lost_peers_named():
            for done in range(1, header.count.messages + 1):
                size = header.count.size(done - 1)
                loss = self._step(self._batch(size), feed, watch)
                watch.tick()
                if loss is not None:
                    self._count_loss(figures, loss, size)
                if header.live and self._live.due():
                    shown = {} if loss is None else {"train_loss": float(loss)}
                    self._show(header, done, started, shown)
            self._finish()
        figures.seconds = self._seconds_since(started)
        figures.timed(watch)
        return figures

    def _step(self, batch: _Batch, feed: Iterator[Batch], watch: Stopwatch) -> Tensor | None:
        target = self._prepare(batch, feed)
        losses: list[Tensor] = []
        if target is not None:
            self._targets.extend(target.chunk(batch.microbatches))
        self.optimizer.zero_grad(set_to_none=True)
        watch.lap("data" if self._first else "receive")
        batch.schedule.step(target=target, losses=losses, return_outputs=False)
        watch.lap("schedule")
        if target is not None:
            self._receiver.release()
        self._update()
        watch.lap("update")
        self.step += 1
        return torch.stack(losses).mean().detach() if losses else None

    def _evaluate(self, header: Header, feed: Iterator[Batch]) -> Evaluation | None:
        self._begin(header)
        score = Score(own=self.loss is own_loss)
        with lost_peers_named():
            for message in range(header.count.messages):
                batch = self._whole(header.count.size(message))
                target = self._prepare(batch, feed)
                batch.schedule.step(return_outputs=False)
                if target is not None:
                    output = self._outputs.pop()
                    score.add(output, target, self._loss_of(output, target))
                    self._receiver.release()
            self._finish()
        return score.result() if self._last else None

    def _begin(self, header: Header) -> None:
        if self._first:
            self._sender.begin((header.target,), header.count)
        if self._last:
            self._receiver.begin((header.target,), header.count)

    def _finish(self) -> None:
        if self._first:
            self._sender.finish()

    def _prepare(self, batch: _Batch, feed: Iterator[Batch]) -> Tensor | None:
        """Reads a batch at the first stage; returns its targets at the last."""
        if self._first:
            device = self.worker.device
            given, target = next(feed)
            taken = [
                part.to(device, non_blocking=True)
                for part in self._inputs.take(given, target.shape[0])
            ]
            specs = self.worker.bundle.plan.samples.inputs
            batch.cell.inputs.extend(cut_all(taken, specs, batch.microbatches))
            self._sender.send([target.to(device, non_blocking=True)])
        return self._receiver.receive()[0] if self._last else None

    def _batch(self, size: int) -> _Batch:
        """How batches of a size are trained; made when the first one comes."""
        if size not in self._training:
            number = microbatches(size, self.worker.options.microbatches)
            # 1F1B needs as many microbatches as stages. An odd last batch may have fewer; in any
            # order of its microbatches the same is computed.
            few = number < self._stages or self.worker.options.mode == "gpipe"
            cell = self._cell(size // number, self._loss)
            schedule = (ScheduleGPipe if few else Schedule1F1B)(
                self._stage(cell), number, loss_fn=_given
            )
            self._training[size] = _Batch(cell, schedule, number)
        return self._training[size]

    def _whole(self, size: int) -> _Batch:
        """How batches of a size are evaluated: forward only, each in one piece.

        torch's stage keeps state between steps, which would break training, so that has another.
        """
        if size not in self._scoring:
            cell = self._cell(size, self._kept)
            self._scoring[size] = _Batch(cell, ScheduleGPipe(self._stage(cell), 1), 1)
        return self._scoring[size]

    def _cell(self, size: int, finish: Any) -> Cell:
        plan = self.worker.bundle.plan.stages[self.worker.place.rank]
        return Cell(self.module, plan, self._below, self._above, size, finish)

    def _stage(self, cell: Cell) -> PipelineStage:
        return PipelineStage(
            cell,
            self.worker.place.rank,
            self._stages,
            self.worker.device,
            input_args=cell.received(),
            output_args=cell.sent(),
        )

    def _loss(self, output: Any) -> Tensor:
        return self._loss_of(output, self._targets.popleft())

    def _kept(self, output: Any) -> Tensor:
        self._outputs.append(output)
        return torch.zeros(())


def check_microbatches(mode: Mode, batch_size: int, asked: int, stages: int) -> None:
    """Refuses batches that cannot be cut into enough microbatches for 1F1B.

    Raises:
        RuntimeFault: with numbers that would do.
    """
    number = microbatches(batch_size, asked)
    if mode == "1f1b" and number < stages:
        fitting = [n for n in range(stages, batch_size + 1) if batch_size % n == 0]
        raise RuntimeFault(
            f"1F1B over {stages} stages takes {stages} microbatches or more; batches of "
            f"{batch_size} are cut into {number}",
            where="--microbatches",
            expected=", ".join(map(str, fitting)) or f"a batch size of {stages} or more",
            hint="--mode gpipe takes any number",
        )


def check_chain(plan: Plan, mode: Mode) -> Sequence[InterfacePlan]:
    """The interfaces, in order, of stages that form a chain.

    Raises:
        RuntimeFault: torch's schedules cannot run these stages; names the interface or parameter.
    """
    chain: dict[int, InterfacePlan] = {}
    for interface in plan.interfaces:
        if interface.to != interface.source + 1:
            names = ", ".join(spec.name for spec in interface.tensors)
            raise _refused(
                mode,
                f"{names} of the interface {interface.name} goes from stage {interface.source} to "
                f"stage {interface.to}",
                "tensors that go from each stage to the next one",
            )
        chain[interface.source] = interface
    for source in range(len(plan.stages) - 1):
        if source not in chain:
            raise _refused(
                mode,
                f"nothing goes from stage {source} to stage {source + 1}",
                "an interface between each stage and the next one",
            )
    for shared in plan.shared:
        holders = ", ".join(str(stage) for stage in (shared.owner, *shared.holders))
        raise _refused(
            mode,
            f"the parameter {shared.name} is in the stages {holders}",
            "every parameter in one stage",
        )
    return [chain[source] for source in sorted(chain)]


def _refused(mode: Mode, problem: str, expected: str) -> RuntimeFault:
    return RuntimeFault(
        f"torch's pipeline schedules cannot run these stages: {problem}",
        where=f"--mode {mode}",
        expected=expected,
        hint="--mode exact (in plan.yaml, schedule: {mode: exact})",
    )


def _given(loss: Tensor, target: Tensor) -> Tensor:
    """The last cell's output is the loss already."""
    return loss
