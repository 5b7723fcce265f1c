"""A bundle's stages under torch's own pipeline schedules: GPipe, 1F1B, interleaved, zero-bubble.

`torch.distributed.pipelining` runs the schedules; this gives it what it lacks: shapes from the plan
instead of a first pass through the model (which would draw random numbers and update BatchNorm), a
stage and a schedule for each batch size, evaluation beside training, a backward pass in two parts
that is right for every graph (`dnic.runtime.split_backward`), and targets that travel from the
process of the first stage to that of the last, so that only the first reads data.

Under the looped schedules a process holds several stages (`dnic.runtime.chunks`): each has a cell
of its own, and torch's schedule says whose turn it is.

torch's schedules know chains only: a tensor that skips a stage, or a parameter in several stages,
is refused with the interface's name. A batch is cut into equal microbatches, as many as asked or
the next smaller divisor of its size that the schedule takes; the gradient is the mean over them. So
what depends on the whole batch differs from backprop: BatchNorm, dropout masks, losses that are no
mean over samples.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import (
    PipelineStage,
    Schedule1F1B,
    ScheduleGPipe,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
    ScheduleZBVZeroBubble,
)
from torch.distributed.pipelining.schedules import (
    FORWARD,
    RECV_F,
    SEND_F,
    PipelineScheduleSingle,
    _PipelineScheduleRuntime,
)

from dnic.errors import RuntimeFault
from dnic.runtime.batches import Header
from dnic.runtime.cells import Cell, cut_all
from dnic.runtime.chunks import LOOPED, SPLIT, takes_microbatches
from dnic.runtime.evaluation import Evaluation, Score
from dnic.runtime.failure import lost_peers_named
from dnic.runtime.groups import groups
from dnic.runtime.held import stages_in
from dnic.runtime.inputs import Batch
from dnic.runtime.links import Link
from dnic.runtime.loss import Loss, own_loss
from dnic.runtime.metrics import EpochFigures
from dnic.runtime.microbatches import microbatches
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.options import Mode
from dnic.runtime.plan import InterfacePlan, Plan
from dnic.runtime.split_backward import SplitStage
from dnic.runtime.stopwatch import Stopwatch
from dnic.runtime.trainer import Trainer
from dnic.runtime.transport import Transport
from dnic.runtime.worker import Worker

_TARGETS = 1  # the tag of the targets; torch's schedules use 0
_SLOTS = 2  # the first stage is at most one batch ahead of the last
_LOOPED: dict[Mode, type[_PipelineScheduleRuntime]] = {
    "interleaved": ScheduleInterleaved1F1B,
    "zerobubble": ScheduleInterleavedZeroBubble,
    "zbv": ScheduleZBVZeroBubble,
}
_TITLES: dict[Mode, str] = {"1f1b": "1F1B", "zerobubble": "zero-bubble", "zbv": "ZBV"}


@dataclass(frozen=True)
class _Batch:
    """How batches of one size run.

    Attributes:
        cells: the stages of this process, for microbatches of one size.
        schedule: torch's.
        microbatches: in a batch.
    """

    cells: Sequence[Cell]
    schedule: PipelineScheduleSingle | _PipelineScheduleRuntime
    microbatches: int


class Pipelined(Trainer):
    """Trains the stages of one process under one of torch's schedules."""

    def __init__(
        self, worker: Worker, stage: nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss
    ) -> None:
        super().__init__(worker, stage, optimizer, loss=loss)
        plan, mode = worker.bundle.plan, worker.options.mode
        self._chain = check_chain(plan, mode)
        check_split(plan, mode)
        self._mode: Mode = mode
        self._stages = len(plan.stages)
        self._processes = worker.place.world_size
        self._held = stages_in(stage, worker.held)
        self._last = self._stages - 1 in self._held
        self._training: dict[int, _Batch] = {}
        self._scoring: dict[int, _Batch] = {}
        self._targets: deque[Tensor] = deque()  # of the microbatches to come, at the last stage
        self._outputs: list[Any] = []  # of an evaluation, at the last stage
        self._travels = not (self._first and self._last)  # the targets, to another process
        if self._travels:
            last = self._processes - 1
            group, _ = groups(0, last, worker.device, worker.options.timeout_s)
            transport = Transport.of(worker)
            there, here = (Link(peer, _TARGETS, group, worker.device) for peer in (last, 0))
            self._sender = transport.plain_sender(there, _SLOTS)
            self._receiver = transport.plain_receiver(here, _SLOTS)
        # A failing rank would print the whole schedule before its own report.
        logging.getLogger("torch.distributed.pipelining.schedules").setLevel(logging.CRITICAL)

    def _train(self, header: Header, feed: Iterator[Batch]) -> EpochFigures:
        figures = EpochFigures(waited_s=None)
        asked = self.worker.options.microbatches
        check_microbatches(self._mode, header.count.batch_size, asked, self._processes)
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
        clear_gradients(self.optimizer)
        watch.lap("data" if self._first else "receive")
        batch.schedule.step(target=target, losses=losses, return_outputs=False)
        watch.lap("schedule")
        self._release(target)
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
                self._release(target)
            self._finish()
        return score.result() if self._last else None

    def _begin(self, header: Header) -> None:
        if self._first and self._travels:
            self._sender.begin((header.target,), header.count)
        if self._last and self._travels:
            self._receiver.begin((header.target,), header.count)

    def _finish(self) -> None:
        if self._first and self._travels:
            self._sender.finish()

    def _release(self, target: Tensor | None) -> None:
        if target is not None and self._travels:
            self._receiver.release()

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
            batch.cells[0].inputs.extend(cut_all(taken, specs, batch.microbatches))
            target = target.to(device, non_blocking=True)
            if not self._travels:
                return target
            self._sender.send([target])
        return self._receiver.receive()[0] if self._last else None

    def _batch(self, size: int) -> _Batch:
        """How batches of a size are trained; made when the first one comes."""
        if size not in self._training:
            number = microbatches_of(
                self._mode, size, self.worker.options.microbatches, self._processes
            )
            self._training[size] = self._made(size // number, number, self._loss, trains=True)
        return self._training[size]

    def _whole(self, size: int) -> _Batch:
        """How batches of a size are evaluated: forward only, each in one piece.

        torch's stage keeps state between steps, which would break training, so that has another.
        """
        if size not in self._scoring:
            self._scoring[size] = self._made(size, 1, self._kept, trains=False)
        return self._scoring[size]

    def _made(self, size: int, number: int, finish: Any, *, trains: bool) -> _Batch:
        """Cells, torch's stages and its schedule, for so many microbatches of one size."""
        cells = [self._cell(index, size, finish) for index in self._held]
        stages = [self._stage(*pair) for pair in zip(self._held, cells, strict=True)]
        loss = _given if trains else None
        if self._mode in _LOOPED:
            looped = _LOOPED[self._mode](list(stages), number, loss_fn=loss)
            if not trains:
                _keep_forwards(looped, self.worker.place.rank)
            return _Batch(cells, looped, number)
        # 1F1B needs as many microbatches as stages. An odd last batch may have fewer; in any
        # order of its microbatches the same is computed.
        few = number < self._stages or self._mode == "gpipe"
        kind = ScheduleGPipe if few else Schedule1F1B
        return _Batch(cells, kind(stages[0], number, loss_fn=loss), number)

    def _cell(self, index: int, size: int, finish: Any) -> Cell:
        plan = self.worker.bundle.plan.stages[index]
        below = self._chain[index - 1] if index else None
        above = self._chain[index] if index < self._stages - 1 else None
        return Cell(self._held[index], plan, below, above, size, finish)

    def _stage(self, index: int, cell: Cell) -> PipelineStage:
        stage = (SplitStage if self._mode in SPLIT else PipelineStage)(
            cell,
            index,
            self._stages,
            self.worker.device,
            input_args=cell.received(),
            output_args=cell.sent(),
        )
        recompute = self.worker.bundle.plan.train.recompute
        if isinstance(stage, SplitStage):
            stage.whole = recompute if isinstance(recompute, bool) else index in recompute
        return stage

    def _loss(self, output: Any) -> Tensor:
        return self._loss_of(output, self._targets.popleft())

    def _kept(self, output: Any) -> Tensor:
        self._outputs.append(output)
        return torch.zeros(())


def microbatches_of(mode: Mode, batch_size: int, asked: int, processes: int) -> int:
    """Into how many microbatches a batch is cut: the most that a schedule takes, up to `asked`."""
    number = microbatches(batch_size, asked)
    while not takes_microbatches(mode, processes, number):
        number = microbatches(batch_size, number - 1)
    return number


def check_microbatches(mode: Mode, batch_size: int, asked: int, processes: int) -> None:
    """Refuses batches that cannot be cut into enough microbatches to keep all processes busy.

    Raises:
        RuntimeFault: with numbers that would do.
    """
    number = microbatches_of(mode, batch_size, asked, processes)
    if mode == "gpipe" or number >= processes:
        return
    fitting = [
        n
        for n in range(processes, batch_size + 1)
        if batch_size % n == 0 and takes_microbatches(mode, processes, n)
    ]
    over = f"{processes} processes" if mode in LOOPED else f"{processes} stages"
    raise RuntimeFault(
        f"{_TITLES.get(mode, mode)} over {over} takes {processes} microbatches or more; batches of "
        f"{batch_size} are cut into {number}",
        where="--microbatches",
        expected=", ".join(map(str, fitting)) or f"a batch size of {processes} or more",
        hint="--mode gpipe takes any number",
    )


def check_split(plan: Plan, mode: Mode) -> None:
    """Refuses to divide the backward pass of compiled stages, which is one piece.

    Raises:
        RuntimeFault: the plan compiles its stages.
    """
    if mode in SPLIT and plan.train.compile:
        raise RuntimeFault(
            f"{_TITLES[mode]} does the backward pass in two parts, and a compiled stage has one",
            where="plan.yaml: train: compile",
            expected="compile: false",
            hint="--mode interleaved or 1f1b goes back in one",
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


def _keep_forwards(schedule: _PipelineScheduleRuntime, rank: int) -> None:
    """Makes a schedule of this process one for evaluation.

    torch's own `eval` goes through the backward passes too, without doing them, which fails where
    neighbouring stages are in one process.
    """
    orders = schedule.pipeline_order_with_comms
    orders[rank] = [a for a in orders[rank] if a.computation_type in (FORWARD, SEND_F, RECV_F)]


def _given(loss: Tensor, target: Tensor) -> Tensor:
    """The last cell's output is the loss already."""
    return loss
