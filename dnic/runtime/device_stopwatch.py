"""Where the time of a training step goes on a GPU.

The same as `dnic.runtime.stopwatch`, on the device's clock: the host only enqueues, steps ahead, so
its times say nothing. Every lap puts an event on the computing stream; those that the device has
passed are counted at the end of later steps, and the last ones when somebody reads, which is after
the epoch's work is done. So nothing stalls, and few events exist at a time. Waiting is what the
links' events enclose, and what the host itself waited (gloo). An event costs some microseconds of
the host's time, none of the device's. The device standing still because the host is late counts in
the part that it was late for. Not seen: kernels on streams other than the computing one.

Written against torch's documentation of `torch.cuda.Event`; it has not run on a GPU.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from dnic.runtime.stopwatch import Lap, Stopwatch
from dnic.runtime.streams import CudaStreams, Event


@dataclass
class _Mark:
    """The end of a part.

    Attributes:
        part: its name.
        event: the moment.
        stalls: what the links have enclosed within it.
        waited_s: by the host within it.
        ends_step: whether a step ends here.
    """

    part: str
    event: Event
    stalls: list[tuple[Event, Event]]
    waited_s: float
    ends_step: bool = False


class DeviceStopwatch(Stopwatch):
    """Times of the steps of one epoch and of their parts.

    Args:
        streams: of the device.
        waited_s: seconds for which this process's host has waited for others so far.
        keep: of how many steps, the last ones, to keep every lap.
    """

    def __init__(
        self, streams: CudaStreams, waited_s: Callable[[], float], *, keep: int = 0
    ) -> None:
        streams.finish()  # so that both clocks start at one moment
        super().__init__(waited_s, keep=keep)
        self._streams = streams
        self._marks: deque[_Mark] = deque()
        streams.taken_stalls()
        self._passed = streams.mark(timed=True)

    def lap(self, part: str) -> None:
        """What was enqueued since the last lap is this part."""
        waited = self._waited_s()
        mark = _Mark(
            part,
            self._streams.mark(timed=True),
            self._streams.taken_stalls(),
            waited - self._waited,
        )
        self._marks.append(mark)
        self._waited = waited

    def tick(self) -> None:
        """A step is over; what was enqueued since the last lap is `rest`."""
        self.lap("rest")
        self._marks[-1].ends_step = True
        while self._marks and self._marks[0].event.query():
            self._pass()

    def step_us(self) -> dict[str, float] | None:
        """`median`, `min` and `mean` of a step on the device, in microseconds."""
        self._catch_up()
        return super().step_us()

    def parts_us(self) -> dict[str, float]:
        """Mean microseconds of each part of a step; together they are the mean step."""
        self._catch_up()
        return super().parts_us()

    @property
    def laps(self) -> list[Lap]:
        """The kept ones, in order; the device's clock, started with the host's."""
        self._catch_up()
        return super().laps

    def stalled_s(self) -> float:
        """For how long the device stood still for messages, what follows the last lap included."""
        self._catch_up()
        for before, after in self._streams.taken_stalls():
            after.synchronize()
            self._stalled_s += _seconds(before, after)
        return self._stalled_s

    def _catch_up(self) -> None:
        if self._marks:
            self._marks[-1].event.synchronize()
        while self._marks:
            self._pass()

    def _pass(self) -> None:
        """Counts the oldest mark, which the device has passed."""
        mark = self._marks.popleft()
        taken_s = _seconds(self._passed, mark.event)
        stalled_s = sum(_seconds(*stall) for stall in mark.stalls)
        self._stalled_s += stalled_s
        # Hosts do not wait in step with their devices.
        self._count(mark.part, self._last + taken_s, min(stalled_s + mark.waited_s, taken_s))
        self._passed = mark.event
        if mark.ends_step:
            self._end_step()


def _seconds(before: Event, after: Event) -> float:
    milliseconds: float = before.elapsed_time(after)
    return milliseconds / 1e3
