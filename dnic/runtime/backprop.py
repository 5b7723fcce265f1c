"""Plain backpropagation of the undivided model in one process: what everything is compared with.

The model as the user wrote it, its initial weights, the same optimizer and the same order of the
data as the stages get; no process group, no link. Random numbers are those of stage 0, so dropout
masks differ from a divided run's (`--no-dropout` makes the two comparable).
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from torch.autograd import backward

from dnic.runtime.batches import Header
from dnic.runtime.evaluation import Evaluation, Score
from dnic.runtime.inputs import Batch
from dnic.runtime.loss import own_loss
from dnic.runtime.metrics import EpochFigures
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.trainer import Trainer


class Backprop(Trainer):
    """Trains the undivided model."""

    def _train(self, header: Header, feed: Iterator[Batch]) -> EpochFigures:
        figures = EpochFigures()
        device = self.worker.device
        started = time.perf_counter()
        watch = self._stopwatch()
        for done, (batch, target) in zip(range(1, header.count.messages + 1), feed, strict=False):
            watch.lap("data")
            output = self._inputs.call(self.module, batch, device)
            loss = self._loss_of(output, target.to(device, non_blocking=True))
            clear_gradients(self.optimizer)
            watch.lap("forward")
            backward([loss])
            watch.lap("backward")
            self._update()
            watch.lap("update")
            self.step += 1
            watch.tick()
            self._count_loss(figures, loss, target.shape[0])
            if header.live and self._live.due():
                self._show(header, done, started, {"train_loss": float(loss)})
        figures.seconds = self._seconds_since(started)
        figures.timed(watch)
        return figures

    def _evaluate(self, header: Header, feed: Iterator[Batch]) -> Evaluation | None:
        score = Score(own=self.loss is own_loss)
        device = self.worker.device
        for batch, target in feed:
            there = target.to(device, non_blocking=True)
            output = self._inputs.call(self.module, batch, device)
            score.add(output, there, self._loss_of(output, there))
        return score.result()
