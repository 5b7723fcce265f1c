"""The single-process reference of stages with replicas: one `Reference` for each column.

Every column runs in a thread of its own, but one at a time: it has its turn until it needs an
average, and again when all others have come as far. So the columns may draw from the process's
random numbers, of which each keeps its own state, and a run is the same every time. With two
replicas the sums have the engine's bits; with more, which add up in an order of the transport's,
they are equal up to rounding. Parts of stages (`shard`) are not handled: they change no result but
by rounding.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from dnic.runtime.bundle import Bundle
from dnic.runtime.loss import Loss
from dnic.runtime.options import Mode
from dnic.runtime.record import Record
from dnic.runtime.reference import Reference
from dnic.runtime.replicas import Replicas
from dnic.runtime.seeds import random_state, restore_random_state


class _Over(Exception):
    """Another column has failed, and says why."""


class Meeting:
    """Where threads that run in turns exchange tensors.

    Args:
        number: of threads.
    """

    def __init__(self, number: int) -> None:
        self._number = number
        self._moved = threading.Condition()
        self._turn = 0
        self._failed = False
        # Of this exchange and the last one, which the later threads have still to read.
        self._given: list[list[Tensor]] = [[torch.empty(0)] * number for _ in range(2)]
        self._count = [0] * number

    def exchange(self, index: int, tensor: Tensor) -> list[Tensor]:
        """Every thread's tensor, in their order."""
        random = random_state()
        given = self._given[self._count[index] % 2]
        self._count[index] += 1
        given[index] = tensor
        self.leave(index)
        self.enter(index)
        restore_random_state(random)
        return list(given)

    def enter(self, index: int) -> None:
        """Waits for a thread's turn; raises where another one has failed."""
        with self._moved:
            self._moved.wait_for(lambda: self._failed or self._turn == index)
            if self._failed:
                raise _Over

    def leave(self, index: int, *, failed: bool = False) -> None:
        """Gives the turn to the next thread."""
        with self._moved:
            self._turn = (index + 1) % self._number
            self._failed = self._failed or failed
            self._moved.notify_all()


@dataclass(frozen=True)
class MeetingReplicas(Replicas):
    """Replicas in threads of one process."""

    meeting: Meeting = field(default_factory=lambda: Meeting(1))

    def _sum(self, tensor: Tensor) -> Tensor:
        given = self.meeting.exchange(self.index, tensor)
        total = given[0]
        for other in given[1:]:
            total = total + other
        return total

    def _each(self, tensor: Tensor) -> list[Tensor]:
        return self.meeting.exchange(self.index, tensor)

    def _of_first(self, tensor: Tensor) -> Tensor:
        return self.meeting.exchange(self.index, tensor.clone())[0]


class ReplicatedReference:
    """A bundle whose stages have replicas, as it trains in this process.

    Args:
        bundle, stages, build_model, loss, train_data, options: as of a `Reference`.
    """

    def __init__(
        self,
        bundle: Bundle,
        stages: ModuleType,
        build_model: Callable[[], nn.Module],
        loss: Loss,
        train_data: Callable[[], Dataset[Any]],
        *,
        mode: Mode = "decoupled",
        **options: Any,
    ) -> None:
        number = bundle.plan.replicas(mode)
        self._meeting = Meeting(number)
        given = bundle, stages, build_model, loss, train_data
        self._columns = [
            Reference(
                *given,
                mode=mode,
                replicas=MeetingReplicas(index, number, meeting=self._meeting),
                **options,
            )
            for index in range(number)
        ]

    def run(self, epochs: int | None = None, max_steps: int | None = None) -> Record:
        """Trains from the beginning; arguments as of `Reference.run`."""
        number = len(self._columns)
        with ThreadPoolExecutor(number) as pool:
            runs = [pool.submit(self._column, i, epochs, max_steps) for i in range(number)]
        failures = [error for error in (run.exception() for run in runs) if error is not None]
        for error in failures:
            if not isinstance(error, _Over):
                raise error
        return runs[0].result()

    def _column(self, index: int, epochs: int | None, max_steps: int | None) -> Record:
        torch.set_flush_denormal(True)  # a thread's own
        self._meeting.enter(index)
        record = None
        try:
            record = self._columns[index].run(epochs, max_steps)
        finally:
            self._meeting.leave(index, failed=record is None)
        return record
