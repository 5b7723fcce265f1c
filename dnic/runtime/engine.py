"""The engine: one stage per process, each going on without waiting for the whole network.

One training step of one stage, in this order; numbers in the code point here. (1) to (3) are the
forward pass of a microbatch `k`, (4) to (6) its backward pass: every microbatch has both, in the
order that `dnic.runtime.order` gives. All else is done once a step.

    stages below                        this stage                         stages above
    ------------                        ----------                         ------------
    owners' parameters      ──────►  0  share values  ───────────────────►  own parameters
    activation, target t.k  ──────►  1  receive
                                     2  forward
                                     3  send  ───────────────────────────►  activation, target t.k
                                     4  gradient t.k: predicted, or awaited
                                     5  backward
    gradient t.k            ◄──────  6  send back
                                     7  take gradients t-w  ◄─────────────  gradients t-w
                                     8  update
                                     9  train heads on (activation, target, gradient) t-w

The gradient of batch t-w is taken at step t, never earlier because it happens to be there: what a
run computes does not depend on the timing of its links. It is asked for as late as possible (7),
after everything that others wait for has left. The last `w` gradients of an epoch are taken when
its steps are over, so that no message is left and evaluation and shutdown find empty links. With
`w` = window there are at most `w + 1` batches past an interface; that is the number of slots at
both ends; with gloo, receives posted ahead.

In a step without an update (`dnic.runtime.updates`) there is no (4) to (6) and no (8).

An `exact` interface awaits its gradient in (4), and so does one whose heads warm up or that its
guard does not trust (`dnic.runtime.guard`). Stages joined by such interfaces are a locked
group: with one microbatch a step they run one after the other, with more they are a pipeline, in
which a stage runs forwards ahead while it waits. Groups do not wait for one another: a window
counts steps, whatever these are cut into. A stage with several interfaces awaits or predicts for
each, and adds up what comes for a tensor that went to several stages.

The loss of a batch is the mean over its microbatches, all of one size. The last stage divides by
their number before it goes back, so every gradient, of a tensor or a parameter, is the batch's own
share and only ever has to be added. What depends on the whole batch is not what it is without
microbatches: BatchNorm, losses that are no mean over samples.

A stage whose true gradients are late and are used all the same is a `dnic.runtime.late_engine`.
Parameters that several stages use are kept alike in (0), (6) and (7): `dnic.runtime.shared`.
Replicas of a stage average their gradients in (5), those of their heads in (9); losses weigh what
their shares of a batch weigh: `dnic.runtime.replicas`.

On a GPU the host enqueues, steps ahead of its device: `dnic.runtime.nccl_links` says what orders
the streams. Autograd runs a backward pass on the stream of its forward pass and joins the current
one at its end, so all of this is on one stream. Nothing in a step needs a number from the device.

Why not `torch.distributed.pipelining`: its schedules know only exact gradients and chains; it
refuses a backward pass for tensors that go to more than one stage, and posts no receive ahead.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from dnic.runtime.batches import Header
from dnic.runtime.cells import cut_all
from dnic.runtime.edges import connect
from dnic.runtime.evaluation import Evaluation, Score
from dnic.runtime.inputs import Batch
from dnic.runtime.links import Sender
from dnic.runtime.loss import Loss, mean_loss, own_loss
from dnic.runtime.metrics import EpochFigures
from dnic.runtime.microbatches import microbatches
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.order import StageOrder
from dnic.runtime.passing import Microbatch, named
from dnic.runtime.replica_trainer import ReplicaTrainer
from dnic.runtime.shared import connect_shared
from dnic.runtime.source_statistics import SourceStatistics
from dnic.runtime.sources import GradientSource, Sent
from dnic.runtime.stopwatch import Stopwatch
from dnic.runtime.transport import Transport
from dnic.runtime.turns import Turns
from dnic.runtime.updates import Updates, update_probability
from dnic.runtime.worker import Worker


class Engine(ReplicaTrainer):
    """Trains one stage.

    Attributes:
        version: updates that this stage has made.
    """

    def __init__(
        self, worker: Worker, stage: nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss
    ) -> None:
        super().__init__(worker, stage, optimizer, loss=loss)
        self.version = 0
        self._plan = worker.bundle.plan.stages[worker.place.stage]
        transport = Transport.of(worker)
        self._below, self._above = connect(worker, transport, loss)
        self._sources = [edge.source for edge in self._above if edge.source is not None]
        self._shared = connect_shared(worker, stage, transport)
        self._ends = transport.ends
        plan, mode, index = worker.bundle.plan, worker.options.mode, worker.place.stage
        self._turns = Turns(stage, optimizer, plan, self._sources)
        self._order = StageOrder(plan, mode, index)
        self._updates = Updates(update_probability(plan.train, mode), worker.seed, index)

    def state_dict(self) -> dict[str, Any]:
        """What this process must remember beside the model's parameters and buffers."""
        state = super().state_dict() | {"turns": self._turns.state_dict()}
        if self._replicas.index == 0:
            state["heads"] = {source.plan.name: source.state_dict() for source in self._sources}
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self.version = self.step
        heads = state.get("heads", {})  # a pipeline's checkpoint has none
        for source in self._sources:
            source.load_state_dict(heads.get(source.plan.name, {}))
        self._turns.load_state_dict(state.get("turns", {}))

    def head_parameters(self) -> dict[str, Tensor]:
        """Parameters of this stage's heads, by `<interface>.<tensor>.<name>`."""
        return {
            f"{source.plan.name}.{name}": parameter
            for source in self._sources
            for name, parameter in source.parameters().items()
        }

    def _train(self, header: Header, feed: Iterator[Batch]) -> EpochFigures:
        figures = EpochFigures()
        own = self._replicas.part(header)
        shares: list[Tensor] = []
        self._replicas.take_buffers(self.module)
        self._begin(own, gradients=True)
        self._shared.begin(header.count.messages)
        waited_before, sent_before = self._waited_s(), self._sent_bytes()
        started = time.perf_counter()
        watch = self._stopwatch(self._waited_s)
        for done in range(1, header.count.messages + 1):
            size = header.count.size(done - 1)
            self._weight = self._replicas.weight(size)
            loss = self._step(feed, own.count.size(done - 1), watch)
            watch.tick()
            if loss is not None and self._replicas.number > 1:
                shares.append(loss.double() * self._weight)
            elif loss is not None:
                self._count_loss(figures, loss, size)
            if header.live and self._live.due():
                self._show(header, done, started, self._live_figures(loss))
        self._drain(watch)
        self._shared.drain(self.optimizer, self.clipping)
        self._finish()
        self._count_shares(figures, header, shares)
        figures.seconds = self._seconds_since(started)
        figures.timed(watch)
        figures.waited_s = self._waited_s() - waited_before + watch.stalled_s()
        figures.sent_bytes = self._sent_bytes() - sent_before
        figures.in_flight_bytes = self._in_flight_bytes()
        figures.interfaces = self._interface_figures()
        return figures

    def _step(self, feed: Iterator[Batch], size: int, watch: Stopwatch) -> Tensor | None:
        number = microbatches(size, self.worker.options.microbatches)
        fed = self._cut(feed, number)
        between: deque[Microbatch] = deque()
        losses: list[Tensor] = []
        self._shared.exchange_values()  # 0
        watch.lap("share")
        clear_gradients(self.optimizer)
        watch.lap("update")
        updates = self.step in self._updates
        awaited = self._turns.begin(self.step, self.version) if updates else []
        for one in self._order.passes(self.step, number, awaited):
            if one.forward:
                between.append(self._forward(fed, number, watch))
                if one.microbatch == number - 1:
                    self._expect(number)
                continue
            if between[0].loss is not None:
                losses.append(between[0].loss.detach())
            if updates:
                self._backward(between.popleft(), watch, last=one.microbatch == number - 1)
            else:
                self._pass_by(between.popleft(), watch)
        self._settle(self.step, watch, updates=updates)
        self.step += 1
        return mean_loss(losses)

    def _settle(self, now: int, watch: Stopwatch, *, updates: bool = True) -> None:
        """What follows the backward passes of a batch; `now` counts on past an epoch's end."""
        self._shared.send_gradients()  # 6
        watch.lap("send back")
        for source in self._sources:  # 7
            source.take(now, self.version)
        self._shared.take_gradients()
        watch.lap("take")
        if updates:
            self._update()  # 8
            self._turns.end()
            self.version += 1
        else:
            self.learning_rate.skipped()
        watch.lap("update")
        for source in self._sources:  # 9
            source.learn()
        watch.lap("learn")

    def _forward(
        self, fed: Iterator[tuple[list[Tensor], Tensor]], number: int, watch: Stopwatch
    ) -> Microbatch:
        """The forward pass of the next microbatch."""
        inputs, target = self._receive(fed, gradients=True)  # 1
        watch.lap("data" if self._first else "receive")
        output = self.module(*inputs.values())  # 2
        loss = self._loss_of(output, target) if self._last else None
        watch.lap("forward")
        outputs: dict[str, Tensor] = {}
        if not self._last:
            outputs = named(self._plan, output)
            self._send(outputs, target)  # 3
            watch.lap("send")
        return Microbatch(inputs, outputs, target, loss, number, self._weight)

    def _backward(self, done: Microbatch, watch: Stopwatch, *, last: bool) -> None:
        """The backward pass of a microbatch, which may be the `last` one of its batch."""
        if done.loss is None:
            roots, gradients = self._gradients(
                done.outputs,
                done.target,
                step=self.step,
                version=self.version,
                number=done.number,
                weight=done.weight,
            )  # 4
            watch.lap("head")
        else:
            roots = [done.loss]
            gradients = [torch.full_like(done.loss, done.weight / done.number)]
        self._averaging.backward(roots, gradients, last=last)  # 5
        inputs = done.inputs
        # What the backward pass leaves of its graph goes here, and not in the midst of the rest.
        del done, roots
        watch.lap("backward")
        for below in self._below:  # 6
            below.send_back(inputs, self.step)
        watch.lap("send back")

    def _pass_by(self, done: Microbatch, watch: Stopwatch) -> None:
        """In place of the backward pass, where the stage does not update."""
        for source in self._sources:
            numbers = self.step, self.version, done.number, done.weight
            source.pass_by(self._sent(source, done.outputs, done.target, *numbers))
        for below in self._below:  # which know that no gradient comes
            below.send_back(done.inputs, self.step)
        watch.lap("send back")

    def _cut(self, feed: Iterator[Batch], number: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """The microbatches of the next batch, which is read when the first one is asked for."""
        device = self.worker.device
        batch, target = next(feed)
        taken = [
            part.to(device, non_blocking=True) for part in self._inputs.take(batch, target.shape[0])
        ]
        target = target.to(device, non_blocking=True)
        if number == 1:
            yield taken, target
            return
        parts = cut_all(taken, self.worker.bundle.plan.samples.inputs, number)
        yield from zip(parts, target.chunk(number), strict=True)

    def _receive(
        self, fed: Iterator[tuple[list[Tensor], Tensor]], *, gradients: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The stage's inputs in the order of its `forward`, and the targets."""
        if self._first:
            taken, target = next(fed)
            return {str(place): part for place, part in enumerate(taken)}, target
        arrived: dict[str, Tensor] = {}
        targets: list[Tensor] = []
        for below in self._below:
            tensors, target_here = below.receive(gradients=gradients)
            arrived.update(tensors)
            if target_here is not None:
                targets.append(target_here)
        return {name: arrived[name] for name in self._plan.inputs}, targets[0]

    def _send(self, outputs: dict[str, Tensor], target: Tensor) -> None:
        for above in self._above:
            above.send(outputs, target)

    def _expect(self, number: int) -> None:
        """All microbatches of the step have left. The stages farthest above answer first."""
        for source in reversed(self._sources):
            source.answers.sent(self.step, number)

    def _drain(self, watch: Stopwatch) -> None:
        """What is still to come when the steps of an epoch are over."""
        for source in self._sources:
            source.drain(self.version)

    def _gradients(
        self,
        outputs: dict[str, Tensor],
        target: Tensor,
        *,
        step: int,
        version: int,
        number: int = 1,
        weight: float = 1.0,
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs to go back from and their gradients, summed over the stages above."""
        sums: dict[str, Tensor] = {}
        for source in self._sources:
            sent = self._sent(source, outputs, target, step, version, number, weight)
            given = source.gradient(sent)
            for spec, gradient in zip(source.plan.differentiable, given, strict=True):
                name = spec.name
                sums[name] = sums[name] + gradient if name in sums else gradient
        used = [name for name in sums if outputs[name].requires_grad]
        return [outputs[name] for name in used], [sums[name] for name in used]

    def _sent(
        self, source: GradientSource, outputs: dict[str, Tensor], target: Tensor, *numbers: Any
    ) -> Sent:
        """What went over a source's interface; the numbers are those of `Sent`."""
        step, version, number, weight = numbers
        tensors, context = (
            [self._kept(outputs[spec.name].detach()) for spec in specs]
            for specs in (source.plan.differentiable, source.plan.context)
        )
        return Sent(step, version, tensors, target, number, weight, context)

    def _kept(self, tensor: Tensor) -> Tensor:
        """The tensor, or a copy if it is (a view of) an input that will be overwritten."""
        return tensor.clone() if any(below.owns(tensor) for below in self._below) else tensor

    def _evaluate(self, header: Header, feed: Iterator[Batch]) -> Evaluation | None:
        if not self._evaluates:
            return None
        self._begin(header, gradients=False)
        score = Score(own=self.loss is own_loss)
        for message in range(header.count.messages):
            number = microbatches(header.count.size(message), self.worker.options.microbatches)
            fed = self._cut(feed, number)
            for _ in range(number):
                inputs, target = self._receive(fed, gradients=False)
                output = self.module(*inputs.values())
                if self._last:
                    score.add(output, target, self._loss_of(output, target))
                else:
                    self._send(named(self._plan, output), target)
                for below in self._below:
                    below.release()
        self._finish()
        self._averaging.rest()
        return score.result() if self._last and self._replicas.index == 0 else None

    def _begin(self, header: Header, *, gradients: bool) -> None:
        total = self.worker.options.total_steps(header.batches)
        self._order.begin(total)
        for source in self._sources:
            source.expect(total)
            source.statistics = SourceStatistics()
        for below in self._below:
            below.begin(header, self.step, total, gradients=gradients)
        for above in self._above:
            above.begin(header, self.step, gradients=gradients)

    def _finish(self) -> None:
        for below in self._below:
            below.finish()
        for above in self._above:
            above.finish()
        self._shared.finish()

    def _waited_s(self) -> float:
        return sum([end.waited_s for end in self._ends]) + self.clipping.waited_s

    def _sent_bytes(self) -> int:
        return sum(end.sent_bytes for end in self._ends if isinstance(end, Sender))

    def _in_flight_bytes(self) -> int:
        return sum(end.slots_bytes for end in self._ends)

    def _interface_figures(self) -> dict[str, dict[str, Any]]:
        return {source.plan.name: source.figures() for source in self._sources}

    def _live_figures(self, loss: Tensor | None) -> dict[str, Any]:
        figures: dict[str, Any] = {"interfaces": self._interface_figures()}
        if loss is not None:
            figures["train_loss"] = float(loss.detach())
        return figures
