"""The engine: one stage per process, each going on without waiting for the whole network.

One training step of one stage, in this order; numbers in the code point here.

    stages below                        this stage                         stages above
    ------------                        ----------                         ------------
    owners' parameters      ──────►  0  share values  ───────────────────►  own parameters
    activation t, target t  ──────►  1  receive
                                     2  forward
                                     3  send  ───────────────────────────►  activation t, target t
                                     4  gradient t: predicted, or awaited
                                     5  backward
    gradient t              ◄──────  6  send back
                                     7  take gradient t-w  ◄──────────────  gradient t-w
                                     8  update
                                     9  train the heads on (activation, target, gradient) t-w

The gradient of batch t-w is taken at step t, never earlier because it happens to be there: what a
run computes does not depend on the timing of its links. It is asked for as late as possible (7),
after everything that others wait for has left. The last `w` gradients of an epoch are taken when
its steps are over, so that no message is left and evaluation and shutdown find empty links. With
`w` = window there are at most `w + 1` batches past an interface; that is the number of slots at
both ends, receives posted ahead.

An `exact` interface awaits gradient t in (4): stages joined by such interfaces run one after the
other, batch by batch; there are no micro-batches. A stage with several interfaces awaits or
predicts for each, and adds up what comes for a tensor that went to several stages.

Parameters that several stages use are kept alike in (0), (6) and (7): `dnic.runtime.shared`.

Why not `torch.distributed.pipelining`: its schedules know only exact gradients, and it refuses a
backward pass for tensors that go to more than one stage.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import backward

from dnic.errors import RuntimeFault
from dnic.runtime.batches import Header
from dnic.runtime.edges import connect
from dnic.runtime.evaluation import Evaluation, Score
from dnic.runtime.inputs import Batch
from dnic.runtime.loss import Loss, own_loss
from dnic.runtime.metrics import EpochFigures
from dnic.runtime.shared import connect_shared
from dnic.runtime.sources import Sent, SourceStatistics, SyntheticSource, warmup_steps
from dnic.runtime.stopwatch import Stopwatch
from dnic.runtime.trainer import Trainer
from dnic.runtime.worker import Worker


class Engine(Trainer):
    """Trains one stage.

    Attributes:
        version: updates that this stage has made.
    """

    def __init__(
        self, worker: Worker, stage: nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss
    ) -> None:
        super().__init__(worker, stage, optimizer, loss=loss)
        self.version = 0
        self._plan = worker.bundle.plan.stages[worker.place.rank]
        self._below, self._above = connect(worker)
        self._sources = [edge.source for edge in self._above if edge.source is not None]
        self._shared = connect_shared(worker, stage)

    def state_dict(self) -> dict[str, Any]:
        """What this process must remember beside the model's parameters and buffers."""
        heads = {source.plan.name: source.state_dict() for source in self._sources}
        return super().state_dict() | {"heads": heads}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        super().load_state_dict(state)
        self.version = self.step
        heads = state.get("heads", {})  # a pipeline's checkpoint has none
        for source in self._sources:
            source.load_state_dict(heads.get(source.plan.name, {}))

    def head_parameters(self) -> dict[str, Tensor]:
        """Parameters of this stage's heads, by `<interface>.<tensor>.<name>`."""
        return {
            f"{source.plan.name}.{name}": parameter
            for source in self._sources
            for name, parameter in source.parameters().items()
        }

    def _train(self, header: Header, feed: Iterator[Batch]) -> EpochFigures:
        figures = EpochFigures()
        self._begin(header, gradients=True)
        self._shared.begin(header.count.messages)
        waited_before, sent_before = self._waited_s(), self._sent_bytes()
        started = time.perf_counter()
        watch = self._stopwatch(self._waited_s)
        for done in range(1, header.count.messages + 1):
            loss = self._step(feed, watch)
            watch.tick()
            if loss is not None:
                self._count_loss(figures, loss, header.count.size(done - 1))
            if header.live and self._live.due():
                self._show(header, done, started, self._live_figures(loss))
        for source in self._sources:
            source.drain(self.version)
        self._shared.drain(self.optimizer)
        self._finish()
        figures.seconds = time.perf_counter() - started
        figures.timed(watch)
        figures.waited_s = self._waited_s() - waited_before
        figures.sent_bytes = self._sent_bytes() - sent_before
        figures.in_flight_bytes = self._in_flight_bytes()
        figures.interfaces = self._interface_figures()
        return figures

    def _step(self, feed: Iterator[Batch], watch: Stopwatch) -> Tensor | None:
        self._shared.exchange_values()  # 0
        watch.lap("share")
        inputs, target = self._receive(feed, gradients=True)  # 1
        watch.lap("data" if self._first else "receive")
        output = self.module(*inputs.values())  # 2
        loss = self._loss_of(output, target) if self._last else None
        self.optimizer.zero_grad(set_to_none=True)
        watch.lap("forward")
        if loss is None:
            outputs = self._named(output)
            self._send(outputs, target)  # 3
            watch.lap("send")
            roots, gradients = self._gradients(outputs, target)  # 4
            watch.lap("head")
            backward(roots, gradients)  # 5
        else:
            backward([loss])  # 5
        watch.lap("backward")
        for below in self._below:  # 6
            below.send_back(inputs)
        self._shared.send_gradients()
        watch.lap("send back")
        for source in self._sources:  # 7
            source.take(self.step, self.version)
        self._shared.take_gradients()
        watch.lap("take")
        self.optimizer.step()  # 8
        watch.lap("update")
        self.version += 1
        for source in self._sources:  # 9
            source.learn()
        watch.lap("learn")
        self.step += 1
        return loss

    def _receive(
        self, feed: Iterator[Batch], *, gradients: bool
    ) -> tuple[dict[str, Tensor], Tensor]:
        """The stage's inputs in the order of its `forward`, and the targets."""
        device = self.worker.device
        if self._first:
            batch, target = next(feed)
            taken = self._inputs.take(batch, target.shape[0])
            inputs = {
                str(place): part.to(device, non_blocking=True) for place, part in enumerate(taken)
            }
            return inputs, target.to(device, non_blocking=True)
        arrived: dict[str, Tensor] = {}
        targets: list[Tensor] = []
        for below in self._below:
            tensors, target_here = below.receive(gradients=gradients)
            arrived.update(tensors)
            if target_here is not None:
                targets.append(target_here)
        return {name: arrived[name] for name in self._plan.inputs}, targets[0]

    def _named(self, output: Any) -> dict[str, Tensor]:
        """The stage's outputs by name."""
        outputs = output if isinstance(output, (tuple, list)) else (output,)
        if len(outputs) != len(self._plan.outputs):
            raise RuntimeFault(
                f"{self._plan.name} returned {len(outputs)} tensors",
                where="stages.py",
                expected=", ".join(self._plan.outputs),
            )
        return dict(zip(self._plan.outputs, outputs, strict=True))

    def _send(self, outputs: dict[str, Tensor], target: Tensor) -> None:
        for above in self._above:
            above.send(outputs, target)

    def _gradients(
        self, outputs: dict[str, Tensor], target: Tensor
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The outputs to go back from and their gradients, summed over the stages above."""
        sums: dict[str, Tensor] = {}
        for source in self._sources:
            names = [spec.name for spec in source.plan.differentiable]
            tensors = [self._kept(outputs[name].detach()) for name in names]
            given = source.gradient(Sent(self.step, self.version, tensors, target))
            for name, gradient in zip(names, given, strict=True):
                sums[name] = sums[name] + gradient if name in sums else gradient
        used = [name for name in sums if outputs[name].requires_grad]
        return [outputs[name] for name in used], [sums[name] for name in used]

    def _kept(self, tensor: Tensor) -> Tensor:
        """The tensor, or a copy if it is (a view of) an input that will be overwritten."""
        return tensor.clone() if any(below.owns(tensor) for below in self._below) else tensor

    def _evaluate(self, header: Header, feed: Iterator[Batch]) -> Evaluation | None:
        self._begin(header, gradients=False)
        score = Score(own=self.loss is own_loss)
        for _ in range(header.count.messages):
            inputs, target = self._receive(feed, gradients=False)
            output = self.module(*inputs.values())
            if self._last:
                score.add(output, target, self._loss_of(output, target))
            else:
                self._send(self._named(output), target)
            for below in self._below:
                below.release()
        self._finish()
        return score.result() if self._last else None

    def _begin(self, header: Header, *, gradients: bool) -> None:
        options = self.worker.options
        total = options.epochs * header.batches
        if options.max_steps is not None:
            total = min(total, options.max_steps)
        for source in self._sources:
            if isinstance(source, SyntheticSource):
                source.warmup_steps = warmup_steps(source.plan, total)
            source.statistics = SourceStatistics()
        for below in self._below:
            below.begin(header, gradients=gradients)
        for above in self._above:
            above.begin(header, gradients=gradients)

    def _finish(self) -> None:
        for below in self._below:
            below.finish()
        for above in self._above:
            above.finish()
        self._shared.finish()

    def _waited_s(self) -> float:
        below = sum(edge.waited_s for edge in self._below)
        return below + sum(edge.waited_s for edge in self._above) + self._shared.waited_s

    def _sent_bytes(self) -> int:
        below = sum(edge.sent_bytes for edge in self._below)
        return below + sum(edge.sent_bytes for edge in self._above)

    def _in_flight_bytes(self) -> int:
        below = sum(edge.in_flight_bytes for edge in self._below)
        return below + sum(edge.in_flight_bytes for edge in self._above)

    def _interface_figures(self) -> dict[str, dict[str, Any]]:
        return {
            source.plan.name: {
                "gradient": source.kind,
                "window": source.plan.window,
                **source.statistics.summary(),
            }
            for source in self._sources
        }

    def _live_figures(self, loss: Tensor | None) -> dict[str, Any]:
        figures: dict[str, Any] = {"interfaces": self._interface_figures()}
        if loss is not None:
            figures["train_loss"] = float(loss.detach())
        return figures
