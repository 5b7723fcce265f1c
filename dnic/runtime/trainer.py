"""What all ways of training share: epochs, metrics, evaluation, checkpoints, the result.

The ways are `Engine` (stages that exchange tensors), `Pipelined` (stages under torch's schedules),
`Backprop` (the undivided model) and `DataParallel` (the undivided model in every process). They
fill in how an epoch is trained and how an evaluation runs; everything a person sees or finds in
the run's folder comes from here, so that all can be compared figure by figure.
"""

from __future__ import annotations

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime import checkpoint as checkpoints
from dnic.runtime.batches import Batches, Header, Share, target_spec
from dnic.runtime.clipping import Clipping
from dnic.runtime.evaluation import Evaluation
from dnic.runtime.inputs import Batch, Inputs
from dnic.runtime.laps import TRACED_STEPS, write_laps
from dnic.runtime.loss import Loss, total_loss
from dnic.runtime.lr import LearningRate
from dnic.runtime.metrics import (
    RESULT_FILE,
    EpochFigures,
    LiveFigures,
    MetricsFile,
    merged,
    replace_text,
)
from dnic.runtime.optimizer import first_step
from dnic.runtime.precision import autocast
from dnic.runtime.progress import Progress
from dnic.runtime.record import clear_record, write_record
from dnic.runtime.seeds import random_state, restore_random_state
from dnic.runtime.sharding import as_parts, whole
from dnic.runtime.stopwatch import Stopwatch

if TYPE_CHECKING:
    from dnic.runtime.worker import Worker


# Of an epoch's record, what the result of the run repeats.
_KEPT = (
    "train_loss",
    "interfaces",
    "waited_share",
    "memory_bytes",
    "in_flight_bytes",
    "sent_bytes",
    "step_us",
    "rank_step_us",
    "parts_us",
)


class Trainer(ABC):
    """Trains one process's part of a model.

    Attributes:
        worker: the process.
        module: its part of the model.
        optimizer: over the module's parameters.
        epoch: epochs begun, over the whole run.
        step: steps done, over the whole run.
        learning_rate: of the optimizer's learning rate.
        clipping: of the gradients.
    """

    # Whether every process reads the data, and takes its share of every batch.
    shares_batches = False

    def __init__(
        self, worker: Worker, module: nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss
    ) -> None:
        self.worker = worker
        self.module = module
        self.optimizer = optimizer
        self.loss = loss
        self.epoch = 0
        self.step = 0
        self.learning_rate = LearningRate()
        self.clipping = Clipping(module.parameters(), None)
        self._stepped = False
        self._inputs = Inputs(worker.bundle.plan.samples)
        place = worker.place
        self._leads = place.rank == 0  # what people see of the run comes from here
        self._first = place.stage == 0
        self._last = place.stage == place.stages - 1
        self._losses: list[Tensor] = []
        self._phase = 0
        self._row: dict[str, Any] | None = None
        self._watch: Stopwatch | None = None
        self._result: dict[str, Any] = {}
        self._trained_samples = 0
        self._trained_s = 0.0
        self._progress = Progress(shown=self._leads, epochs=worker.options.epochs)
        self._live = LiveFigures(worker.board, worker.place.rank)
        self._metrics = MetricsFile(worker.options.out)
        worker.guard.at_failure.append(self._progress.end)

    def epochs(self) -> Iterator[int]:
        """The numbers, from 1, of the epochs that are still to do.

        Goes on after the checkpoint with `--resume`; ends early after `--max-steps`.
        """
        options = self.worker.options
        if options.resume is not None and self.epoch == 0:
            self.restore(options.resume)
        if self._leads:
            self._metrics.start(self.epoch)
            checkpoints.clear_unfinished(options.out)
            if options.record is not None:
                clear_record(options.record)
        for epoch in range(self.epoch + 1, options.epochs + 1):
            if options.max_steps is not None and self.step >= options.max_steps:
                break
            self.epoch = epoch
            yield epoch
            self._close_row()

    def train(self, batches: Batches | None) -> None:
        """One pass over the training data.

        Args:
            batches: what `worker.batches` returned.
        """
        self.learning_rate.check_evaluated()
        most = self.worker.options.max_steps
        header, feed = self._announce(batches, f"epoch {self.epoch}", most, self._share())
        self._progress.begin(f"epoch {self.epoch}", header.count.messages)
        self.module.train()
        figures = self._train(header, feed)
        lr = float(self.optimizer.param_groups[0]["lr"])
        self.learning_rate.trained(self.epoch)
        self._progress.end()
        figures.samples = header.count.samples
        options = self.worker.options
        if options.trace is not None and self._watch is not None:
            write_laps(options.trace, self.worker.place.rank, self._watch.laps)
        ranks = self._gathered(figures.to_json(last=self._last))
        if not ranks:
            return
        row = merged(ranks)
        self._trained_samples += row["samples"]
        self._trained_s += row["train_s"]
        self._row = {
            "epoch": self.epoch,
            "step": self.step,
            "mode": options.mode,
            "lr": lr,
            **row,
        }

    def evaluate(self, batches: Batches | None) -> Evaluation | None:
        """Loss and accuracy over a data set, in eval mode; the same figures on every process.

        Args:
            batches: what `worker.batches` returned.

        Returns:
            The figures; None with `--no-evaluate`.
        """
        if not self.worker.options.evaluate:
            return None
        random = random_state()  # test data may draw some; training goes on as if it had not
        header, feed = self._announce(batches, "evaluation", None, self._evaluated_share())
        training = self.module.training
        self.module.eval()
        with torch.no_grad():
            score = self._evaluate(header, feed)
        self.module.train(training)
        restore_random_state(random)
        key = f"evaluation/{self._phase}"
        if score is not None:
            self.worker.board.publish(key, score.to_json())
        figures = Evaluation.from_json(self.worker.board.read(key))
        self.learning_rate.evaluated(figures.test_loss)
        if self._row is not None:
            self._row.update(figures.to_json())
        self._result.update(figures.to_json())
        return figures

    def checkpoint(self) -> Path | None:
        """Writes a checkpoint of the run; None with `--no-checkpoint`."""
        if not self.worker.options.checkpoint:
            return None
        self.learning_rate.check_evaluated()
        return checkpoints.save(self.worker, self.epoch, self.step, self.module, self.state_dict())

    def restore(self, folder: Path) -> None:
        """Goes on where a checkpoint was written.

        Raises:
            RuntimeFault: it is no checkpoint, or one of another bundle.
        """
        self.load_state_dict(checkpoints.restore(self.worker, folder, self.module))

    def state_dict(self) -> dict[str, Any]:
        """What this process must remember beside the model's parameters and buffers."""
        return {
            "epoch": self.epoch,
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.learning_rate.state_dict(),
            "random": random_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.epoch, self.step = state["epoch"], state["step"]
        self.optimizer.load_state_dict(as_parts(state["optimizer"], self.optimizer))
        self.learning_rate.load_state_dict(state.get("scheduler"))
        restore_random_state(state["random"])

    def finish(self) -> None:
        """Writes the result of the run; called once, by `entry`."""
        self._close_row()
        options, place = self.worker.options, self.worker.place
        if options.record is not None:
            write_record(
                options.record,
                place.rank,
                [float(loss) for loss in self._losses],
                whole(self.worker.names.state(self.module, *self.worker.written)),
                self.worker.names.tied,
                self.head_parameters(),
                copy=place.replica > 0,
            )
        if not self._leads:
            return
        result = {
            "model": self.worker.bundle.plan.model,
            "mode": options.mode,
            "epochs": self.epoch,
            "steps": self.step,
            "world_size": place.world_size,
            "microbatches": options.microbatches,
            "seed": self.worker.seed,
            "device": self.worker.device.type,
            "threads": torch.get_num_threads(),
            "samples_per_s": self._trained_samples / self._trained_s if self._trained_s else None,
            **self._result,
        }
        replace_text(options.out / RESULT_FILE, json.dumps(result, indent=1) + "\n")

    def head_parameters(self) -> dict[str, Tensor]:
        """Parameters of this process's heads by name, for records."""
        return {}

    @abstractmethod
    def _train(self, header: Header, feed: Iterator[Batch]) -> EpochFigures:
        """Trains for `header.count.messages` steps."""

    @abstractmethod
    def _evaluate(self, header: Header, feed: Iterator[Batch]) -> Evaluation | None:
        """Evaluates; the figures on the last stage, None elsewhere."""

    def _announce(
        self,
        batches: Batches | None,
        title: str,
        max_steps: int | None,
        share: Share | None = None,
    ) -> tuple[Header, Iterator[Batch]]:
        """Agrees with the other processes on what comes.

        The feed is empty but on the first process; with a share each that has batches has its own.
        """
        self._phase += 1
        key = f"phase/{self._phase}"
        if batches is None and self._leads:
            raise RuntimeFault("there are no batches", where="train.py", expected=title)
        if batches is None or not self._leads:
            header = Header.from_json(self.worker.board.read(key))
            return header, batches.epoch(self.epoch, share) if batches and share else iter(())
        most = None if max_steps is None else max_steps - self.step
        feed = batches.epoch(self.epoch, share)
        first = next(feed)
        header = Header(
            count=batches.count(most),
            target=target_spec(first[1]),
            batches=len(batches),
            live=self._progress.live,
        )
        self.worker.board.publish(key, header.to_json())
        return header, chain((first,), feed)

    def _share(self) -> Share | None:
        """The part of every training batch that this process reads; None: all of it, or nothing."""
        place = self.worker.place
        return Share(place.rank, place.world_size) if self.shares_batches else None

    def _evaluated_share(self) -> Share | None:
        """The same of an evaluation, which the first process reads, as a rule."""
        return None

    def _stopwatch(self, waited_s: Callable[[], float] = lambda: 0.0) -> Stopwatch:
        """A stopwatch for an epoch, which keeps the last steps where a trace is asked for."""
        keep = TRACED_STEPS if self.worker.options.trace is not None else 0
        self._watch = self.worker.streams.stopwatch(waited_s, keep=keep)
        return self._watch

    def _seconds_since(self, started: float) -> float:
        """Since a moment of `time.perf_counter`, when the device has done what was asked of it."""
        self.worker.streams.finish()
        return time.perf_counter() - started

    def _loss_of(self, output: Any, target: Tensor) -> Tensor:
        with autocast(self.worker.bundle.plan.train.precision, self.worker.device):
            return total_loss(self.loss, output, target)

    def _update(self) -> None:
        """One update with the gradients that the parameters hold."""
        self.clipping.clip()
        if self._stepped:
            self.optimizer.step()
        else:
            first_step(self.optimizer)
            self._stepped = True
        self.learning_rate.updated()

    def _count_loss(self, figures: EpochFigures, loss: Tensor, size: int) -> None:
        detached = loss.detach()
        figures.loss_sum = figures.loss_sum + detached.double() * size
        if self.worker.options.record is not None:
            self._losses.append(detached)

    def _show(self, header: Header, done: int, started: float, figures: dict[str, Any]) -> None:
        """Publishes this process's live figures; the first one also draws them."""
        if self._leads:
            seen = self._live.look(self.worker.place.world_size)
            seen["interfaces"] = figures.get("interfaces", {}) | seen["interfaces"]
            seen["train_loss"] = figures.get("train_loss", seen.get("train_loss"))
            seconds = time.perf_counter() - started
            seen["samples_per_s"] = done * header.count.batch_size / seconds
            self._progress.update(done, seen)
        else:
            self._live.publish(figures)

    def _gathered(self, figures: dict[str, Any]) -> list[dict[str, Any]]:
        """What every process counted, on the first; empty on the others."""
        board, key = self.worker.board, f"figures/{self._phase}"
        board.publish(f"{key}/{self.worker.place.rank}", figures)
        if not self._leads:
            return []
        return [board.read(f"{key}/{rank}") for rank in range(self.worker.place.world_size)]

    def _close_row(self) -> None:
        if self._row is None:
            return
        self._metrics.append(self._row)
        self._progress.epoch(self._row)
        self._result.update((key, self._row[key]) for key in _KEPT)
        self._row = None
