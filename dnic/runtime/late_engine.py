"""A stage that goes on with true gradients that are late: the `stale` source.

Numbers as in `dnic.runtime.engine`; the stage is late by L batches (`dnic.runtime.crossing`).

    stages below                        this stage                         stages above
    ------------                        ----------                         ------------
    activation t, target t  ──────►  1  receive
                                     2  forward t, with the weights of now,
                                        or those foreseen (`dnic.runtime.foresight`)
                                     3  send  ───────────────────────────►  activation t, target t
                                     4  gradient t-L: awaited  ◄──────────  gradient t-L
                                     5  backward t-L, with the weights that t-L went forward with
    gradient t-L            ◄──────  6  send back
                                     7  take what heads beside it are trained on
                                     8  update
                                     9  train those heads

In the first L steps of an epoch no gradient is due: the stage does not update. The last L batches
go back, each with its update, when the epoch's steps are over, so that an epoch makes as many
updates as it has batches, and checkpoints and evaluation find nothing under way. While the
interfaces warm up L is 0. The true gradient is that of the batch, taken with the weights of its own
forward pass; what is late is only the update (PipeDream, arXiv 1806.03377, section 3.3).

Its replicas average their gradients when the backward pass is over (`dnic.runtime.averaging`).
The graphs, the inputs and the weights of L batches are kept (`dnic.runtime.stash`). Where a head
predicts at another interface of the same stage, it does so when its batch goes back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd import backward

from dnic.errors import RuntimeFault
from dnic.runtime.averaging import Averaging, ByHand
from dnic.runtime.batches import Header
from dnic.runtime.crossing import crossings
from dnic.runtime.engine import Engine
from dnic.runtime.foresight import Foresight
from dnic.runtime.inputs import Batch
from dnic.runtime.loss import Loss
from dnic.runtime.optimizer import clear_gradients
from dnic.runtime.passing import named
from dnic.runtime.plan import TrainPlan
from dnic.runtime.stash import WeightStash
from dnic.runtime.stopwatch import Stopwatch
from dnic.runtime.worker import Worker


@dataclass(frozen=True)
class _Open:
    """A batch that went forward and has not gone back yet."""

    step: int
    version: int
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    target: Tensor
    weight: float
    weights: Mapping[str, Tensor]


class LateEngine(Engine):
    """Trains one stage with gradients that are late; never the last one."""

    def __init__(
        self, worker: Worker, stage: nn.Module, optimizer: torch.optim.Optimizer, *, loss: Loss
    ) -> None:
        super().__init__(worker, stage, optimizer, loss=loss)
        plan, mode = worker.bundle.plan, worker.options.mode
        check_late(plan.train, worker.place.stage)
        if worker.options.microbatches > 1:
            raise RuntimeFault(
                f"stage {worker.place.stage} takes late gradients (stale), of whole batches only",
                where="--microbatches",
                expected="1, or another source of gradients",
            )
        self._crossed, stage_ = crossings(plan, mode), worker.place.stage
        self._late, self._in_time = self._crossed.late[stage_], 0
        foresees = self._crossed.foresees[stage_]
        self._stash = WeightStash(stage, Foresight(stage, optimizer) if foresees else None)
        self._open: deque[_Open] = deque()

    def _begin(self, header: Header, *, gradients: bool) -> None:
        super()._begin(header, gradients=gradients)
        self._in_time = self._crossed.in_time(self.worker.options.total_steps(header.batches))

    def _averages(self, stage: nn.Module) -> Averaging:
        return ByHand(stage, self.worker.replicas)

    def _step(self, feed: Iterator[Batch], size: int, watch: Stopwatch) -> Tensor | None:
        self._stash.keep()  # the copies of other stages' parameters are about to change
        self._shared.exchange_values()  # 0
        watch.lap("share")
        inputs, target = self._receive(self._cut(feed, 1), gradients=True)  # 1
        watch.lap("data" if self._first else "receive")
        late = self._late if self.step >= self._in_time else 0
        output, weights = self._through(inputs, late)  # 2
        watch.lap("forward")
        outputs = named(self._plan, output)
        self._send(outputs, target)  # 3
        self._expect(1)
        watch.lap("send")
        self._open.append(
            _Open(self.step, self.version, inputs, outputs, target, self._weight, weights)
        )
        if len(self._open) > late:
            self._go_back(self.step, watch)
        self.step += 1
        return None

    def _through(
        self, inputs: Mapping[str, Tensor], late: int
    ) -> tuple[object, Mapping[str, Tensor]]:
        """The output, and the weights to go back to where they are not the module's own."""
        given = tuple(inputs.values())
        return self._stash.forward(given, len(self._open)) if late else (self.module(*given), {})

    def _go_back(self, now: int, watch: Stopwatch) -> None:
        """The oldest open batch's backward pass, and the update; `now` counts on past the end."""
        batch = self._open.popleft()
        clear_gradients(self.optimizer)
        self._turns.begin(batch.step, self.version)
        roots, gradients = self._gradients(
            batch.outputs,
            batch.target,
            step=batch.step,
            version=batch.version,
            weight=batch.weight,
        )  # 4
        watch.lap("head")
        backward(roots, gradients)  # 5
        self._stash.collect(batch.weights)
        self._averaging.after()
        watch.lap("backward")
        for below in self._below:  # 6
            below.send_back(batch.inputs, batch.step)
        self._settle(now, watch)

    def _update(self) -> None:
        self._stash.keep()
        super()._update()

    def _drain(self, watch: Stopwatch) -> None:
        for now in range(self.step, self.step + len(self._open)):
            self._go_back(now, watch)
        super()._drain(watch)


def check_late(train: TrainPlan, stage: int) -> None:
    """Refuses what would go back with other weights than it went forward with.

    Recomputation and compiled code read the module's parameters of now, not those of the batch.

    Raises:
        RuntimeFault: the plan recomputes or compiles this stage.
    """
    recomputed = train.recompute if isinstance(train.recompute, bool) else stage in train.recompute
    for key, asked in (("recompute", recomputed), ("compile", train.compile)):
        if asked:
            raise RuntimeFault(
                f"stage {stage} takes late gradients (stale), which {key} cannot go with",
                where=f"plan.yaml: train: {key}",
                expected=f"{key}: false, or another source of gradients",
            )
