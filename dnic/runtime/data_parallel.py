"""Data parallelism: the undivided model in every process, each with its share of every batch.

`torch.nn.parallel.DistributedDataParallel` (DDP) averages gradients over the processes, whatever
their shares are. Here each loss is weighed by its share first, so that the sum is the mean over
the whole batch, also where a batch does not divide evenly; a process without a sample runs one
without weight, because the others wait for it.

What differs from backprop by nature: BatchNorm sees a share and not the batch (the running
statistics are the first process's), dropout draws other masks, and a loss that is no mean over the
samples (`ignore_index`) is the weighted mean of the shares' losses.

The first step averages by hand. It shows whether every parameter gets a gradient, which DDP wants
to know: looking for those without one costs time in every step, and not looking hangs. On GPUs that
step waits for the device, no other does.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.autograd import backward
from torch.nn.parallel import DistributedDataParallel

from dnic.errors import RuntimeFault
from dnic.runtime.averaging import trained
from dnic.runtime.backprop import Backprop
from dnic.runtime.batches import Header, Share
from dnic.runtime.evaluation import Evaluation
from dnic.runtime.failure import lost_peers_named
from dnic.runtime.inputs import Batch
from dnic.runtime.loss import Loss
from dnic.runtime.metrics import EpochFigures
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.replicas import Replicas
from dnic.runtime.seeds import seed_everything, stage_seed
from dnic.runtime.stopwatch import Stopwatch
from dnic.runtime.worker import Worker

_UNREDUCED = "Expected to have finished reduction"


class DataParallel(Backprop):
    """Trains the undivided model in several processes; the first one evaluates and writes."""

    shares_batches = True

    def __init__(
        self, worker: Worker, module: nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss
    ) -> None:
        super().__init__(worker, module, optimizer, loss=loss)
        self._rank, self._ranks = worker.place.rank, worker.place.world_size
        self._parallel: nn.Module | None = None  # DDP, from the second step on

    def epochs(self) -> Iterator[int]:
        """The numbers, from 1, of the epochs that are still to do."""
        if self._rank:
            # Until now all drew the same, so that they have the same data; now each its own.
            seed_everything(stage_seed(self.worker.seed, self._rank))
        return super().epochs()

    def state_dict(self) -> dict[str, object]:
        """What this process must remember; the optimizer is the same in all, and kept once."""
        state = super().state_dict()
        if self._rank:
            del state["optimizer"], state["scheduler"]
        return state

    def finish(self) -> None:
        """Writes the result, and lets go of the process group: its threads must end before us.

        A thread of gloo that still holds the last message when Python ends aborts the process.
        """
        super().finish()
        self._parallel = None

    def _train(self, header: Header, feed: Iterator[Batch]) -> EpochFigures:
        figures = EpochFigures(waited_s=None if self._ranks > 1 else 0.0)
        share = Share(self._rank, self._ranks)
        parts: list[Tensor] = []
        started = time.perf_counter()
        watch = self._stopwatch()
        with lost_peers_named():
            for done in range(1, header.count.messages + 1):
                size = header.count.size(done - 1)
                begin, end = share.bounds(size)
                weight = (end - begin) / size
                batch, target = next(feed)
                watch.lap("data")
                loss = self._step(batch, target, weight, watch)
                parts.append(loss.detach().double() * weight)
                watch.tick()
                if header.live and self._live.due():
                    self._show(header, done, started, {"train_loss": float(loss.detach())})
            # Of the whole batches; here, because it is one message for all steps.
            losses = torch.stack(parts) if parts else torch.empty(0)
            if self._ranks > 1:
                dist.all_reduce(losses)
        figures.seconds = self._seconds_since(started)
        figures.timed(watch)
        if self._last:
            for message, mean in enumerate(losses):
                self._count_loss(figures, mean, header.count.size(message))
        return figures

    def _evaluate(self, header: Header, feed: Iterator[Batch]) -> Evaluation | None:
        return super()._evaluate(header, feed) if self._first else None

    def _step(self, batch: object, target: Tensor, weight: float, watch: Stopwatch) -> Tensor:
        device = self.worker.device
        model = self._parallel or self.module
        try:
            output = self._inputs.call(model, batch, device)
        except RuntimeError as error:
            raise _changed() if _UNREDUCED in str(error) else error from error
        loss = self._loss_of(output, target.to(device, non_blocking=True))
        clear_gradients(self.optimizer)
        watch.lap("forward")
        # DDP divides the sum by the number of processes.
        backward([loss * (weight * self._ranks)])
        if self._parallel is None and self._ranks > 1:
            copies = Replicas(self._rank, self._ranks)
            unused = copies.average_gradients(trained(self.module))
            self._parallel = DistributedDataParallel(self.module, find_unused_parameters=unused)
        watch.lap("backward")
        self._update()
        watch.lap("update")
        self.step += 1
        return loss


def _changed() -> RuntimeFault:
    return RuntimeFault(
        "a parameter that had a gradient in the first step had none in a later one",
        where="model.py",
        expected="with --mode ddp: the same parameters in every step",
        hint="--mode exact, or --mode backprop in one process",
    )
