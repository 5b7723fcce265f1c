"""Streams and events of a GPU: what may run beside what, and how long the device stood still.

On CUDA a call returns when its work is enqueued, and only events order the work of two streams.
There is one stream that computes (the current one), one of each NCCL communicator, and here a lane
for each direction in which a stage receives: what is put on a lane waits for one moment of the
computing stream, not for all that was enqueued since. So the host may be steps ahead and a message
still arrives as early as its slot is free. Nothing here waits on the host but `finish`.

In main memory calls return when they are done: `Streams` itself does nothing and costs nothing.
`torch.cuda.Stream` and `Event` do the work; `record_stream` is not used, because whatever crosses
streams lies in slots that live as long as their link.

Written against torch's documentation (CUDA semantics; `torch.cuda.Event`); it has not run on a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from dnic.runtime.stopwatch import Stopwatch

# torch.cuda.Event, or what a test puts in its place.
Event = Any


class Streams:
    """Those of main memory: none."""

    @classmethod
    def of(cls, device: torch.device) -> Streams:
        """Those of a device."""
        return CudaStreams(device) if device.type == "cuda" else cls()

    def finish(self) -> None:
        """Waits, on the host, until the device has done what it was asked to."""

    def stopwatch(self, waited_s: Callable[[], float], *, keep: int = 0) -> Stopwatch:
        """A stopwatch for an epoch that begins now; the arguments are those of `Stopwatch`."""
        return Stopwatch(waited_s, keep=keep)


class CudaStreams(Streams):
    """Those of a GPU.

    Args:
        device: the GPU.
        cuda: `torch.cuda`; tests put something in its place that remembers the order.
    """

    def __init__(self, device: torch.device, cuda: Any = torch.cuda) -> None:
        self._device = device
        self._cuda = cuda
        self._stalls: list[tuple[Event, Event]] = []

    def finish(self) -> None:
        """Waits, on the host, until the stream that computes has done what it was asked to."""
        self._cuda.current_stream(self._device).synchronize()

    def stopwatch(self, waited_s: Callable[[], float], *, keep: int = 0) -> Stopwatch:
        """A stopwatch that takes the device's times."""
        from dnic.runtime.device_stopwatch import DeviceStopwatch

        return DeviceStopwatch(self, waited_s, keep=keep)

    def mark(self, *, timed: bool = False) -> Event:
        """The moment at which the current stream will have done all that is enqueued so far."""
        event = self._cuda.Event(enable_timing=timed)
        event.record(self._cuda.current_stream(self._device))
        return event

    def follow(self, event: Event) -> None:
        """What the current stream is given from now on waits for a moment of another stream."""
        self._cuda.current_stream(self._device).wait_event(event)

    def lane(self) -> Lane:
        """A new one.

        torch has 32 streams of each priority and gives them out in turns; NCCL's are of another.
        """
        return Lane(self._cuda.Stream(self._device), self._cuda)

    @contextmanager
    def stall(self) -> Iterator[None]:
        """Counts as waiting for as long as what is enqueued within holds the current stream."""
        before = self.mark(timed=True)
        yield
        self._stalls.append((before, self.mark(timed=True)))

    def taken_stalls(self) -> list[tuple[Event, Event]]:
        """Those since the last call, each from one moment to another."""
        taken, self._stalls = self._stalls, []
        return taken

    def host_buffers(self, number: int, nbytes: int) -> list[Tensor]:
        """Buffers in main memory that the device copies to and from by itself (pinned)."""
        return [torch.empty(nbytes, dtype=torch.uint8, pin_memory=True) for _ in range(number)]


class Lane:
    """A stream beside the one that computes.

    Args:
        stream: the stream.
        cuda: `torch.cuda`.
    """

    def __init__(self, stream: Any, cuda: Any) -> None:
        self._stream = stream
        self._cuda = cuda

    @contextmanager
    def after(self, event: Event) -> Iterator[None]:
        """What is enqueued within runs on the lane, after a moment of another stream."""
        self._stream.wait_event(event)
        with self._cuda.stream(self._stream):
            yield
