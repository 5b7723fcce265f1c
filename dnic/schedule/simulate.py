"""A discrete-event simulation of devices that compute, send, receive and wait.

Each device carries out its program, one action after the other. A message costs processor time on
both ends; in between it occupies its wire, alone and first come first served, and then travels for
the wire's latency. A channel keeps its messages in order, so that none needs a tag.

Why not simpy: a few kinds of events and one queue are all that is needed, and a hundred thousand
events take well under a second here. Not modelled: lost messages, links that share a switch,
devices whose speed varies.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dnic.errors import PartitionError


@dataclass(frozen=True, slots=True)
class Compute:
    """Computing for `us` microseconds."""

    us: float


@dataclass(frozen=True, slots=True)
class Send:
    """Handing the next message to a channel; `us` of processor time."""

    channel: int
    us: float = 0.0


@dataclass(frozen=True, slots=True)
class Receive:
    """Waiting for the next message of a channel and taking it; `us` of processor time."""

    channel: int
    us: float = 0.0


@dataclass(frozen=True, slots=True)
class AllReduce:
    """Waiting for all devices of a group, then `us` of processor time on each."""

    group: int
    us: float


@dataclass(frozen=True, slots=True)
class StepDone:
    """The end of a training step; takes no time."""


Action = Compute | Send | Receive | AllReduce | StepDone


@dataclass(frozen=True)
class Wire:
    """One direction of a link. Several channels may share it, even of several devices.

    Attributes:
        bandwidth_bytes_per_s: inf for none to speak of.
        latency_us: one way.
    """

    bandwidth_bytes_per_s: float = float("inf")
    latency_us: float = 0.0


@dataclass(frozen=True)
class Channel:
    """Messages of one kind from one device to another.

    Attributes:
        wire: index of the wire.
        nbytes: of each message.
        slots: receives that are posted ahead. A sender waits while as many messages are on their
            way or not yet taken; word of a free slot takes the wire's latency. 0: a receive is
            posted when the receiver gets there, and only then the message starts to move (gloo
            without posted receives). None: no limit.
    """

    wire: int
    nbytes: float = 0.0
    slots: int | None = None


@dataclass(frozen=True)
class Run:
    """What a simulation yields; one entry for each device, then for each of its steps.

    Attributes:
        ends_us: when each step was done.
        busy_us: processor time spent until then.
    """

    ends_us: tuple[tuple[float, ...], ...]
    busy_us: tuple[tuple[float, ...], ...]

    def step_us(self, measured: int) -> float:
        """Mean time of the last `measured` steps, until the last device is done."""
        done: list[float] = [max(ends) for ends in zip(*self.ends_us, strict=True)]
        return (done[-1] - done[-1 - measured]) / measured

    def busy_us_per_step(self, measured: int) -> tuple[float, ...]:
        """Mean processor time of each device in the last `measured` steps."""
        return tuple((busy[-1] - busy[-1 - measured]) / measured for busy in self.busy_us)


def simulate(
    programs: Sequence[Iterable[Action]],
    channels: Sequence[Channel] = (),
    wires: Sequence[Wire] = (),
    groups: Sequence[int] = (),
) -> Run:
    """Run all programs to their ends.

    Args:
        programs: the actions of each device.
        channels, wires: what `Send`, `Receive` and `Channel` name by index.
        groups: number of devices of each group that `AllReduce` names.

    Raises:
        PartitionError: the devices wait for one another for ever.
    """
    return _Simulation(programs, channels, wires, groups).run()


@dataclass
class _ChannelState:
    sent: int = 0
    freed: int = 0
    arrived: int = 0
    posted: int = 0
    unposted: int = 0  # Messages that wait for a receive to be posted.
    sender: tuple[int, float] | None = None  # Device that waits for a slot; its time to send.
    receiver: tuple[int, float] | None = None


class _Simulation:
    def __init__(
        self,
        programs: Sequence[Iterable[Action]],
        channels: Sequence[Channel],
        wires: Sequence[Wire],
        groups: Sequence[int],
    ) -> None:
        self._programs: list[Iterator[Action]] = [iter(program) for program in programs]
        self._channels = channels
        self._wires = wires
        self._groups = groups
        self._state = [_ChannelState() for _ in channels]
        self._free_at = [0.0] * len(wires)
        self._gathered: list[list[int]] = [[] for _ in groups]
        self._busy = [0.0] * len(programs)
        self._ends: list[list[float]] = [[] for _ in programs]
        self._busy_at: list[list[float]] = [[] for _ in programs]
        self._running = set(range(len(programs)))
        self._queue: list[tuple[float, int, Callable[..., None], tuple[float, ...]]] = []
        self._number = 0

    def run(self) -> Run:
        for device in range(len(self._programs)):
            self._advance(device, 0.0)
        while self._queue:
            now, _, event, arguments = heapq.heappop(self._queue)
            event(now, *arguments)
        if self._running:
            waiting = ", ".join(map(str, sorted(self._running)))
            raise PartitionError("the schedule stops half-way", where=f"devices {waiting} wait")
        return Run(tuple(map(tuple, self._ends)), tuple(map(tuple, self._busy_at)))

    def _at(self, now: float, event: Callable[..., None], *arguments: float) -> None:
        # The number keeps events of one moment in the order in which they were caused.
        self._number += 1
        heapq.heappush(self._queue, (now, self._number, event, arguments))

    def _advance(self, device: int, now: float) -> None:
        """Computes until the device's next action that concerns others."""
        for action in self._programs[device]:
            match action:
                case Compute(us):
                    now += us
                    self._busy[device] += us
                case StepDone():
                    self._ends[device].append(now)
                    self._busy_at[device].append(self._busy[device])
                case Send(channel, us):
                    return self._at(now, self._send, device, channel, us)
                case Receive(channel, us):
                    return self._at(now, self._receive, device, channel, us)
                case AllReduce(group, us):
                    return self._at(now, self._gather, device, group, us)
        self._running.discard(device)
        return None

    def _send(self, now: float, device: int, channel: int, us: float) -> None:
        state, slots = self._state[channel], self._channels[channel].slots
        if slots and state.sent - state.freed >= slots:
            state.sender = (device, us)
            return
        state.sent += 1
        self._busy[device] += us
        self._at(now + us, self._transmit, channel)
        self._advance(device, now + us)

    def _transmit(self, now: float, channel: int) -> None:
        state = self._state[channel]
        if self._channels[channel].slots == 0:
            if not state.posted:
                state.unposted += 1
                return
            state.posted -= 1
        self._occupy(now, channel)

    def _occupy(self, now: float, channel: int) -> None:
        spec = self._channels[channel]
        wire = self._wires[spec.wire]
        busy_us = spec.nbytes / wire.bandwidth_bytes_per_s * 1e6
        left = max(now, self._free_at[spec.wire]) + busy_us
        self._free_at[spec.wire] = left
        self._at(left + wire.latency_us, self._arrive, channel)

    def _arrive(self, now: float, channel: int) -> None:
        state = self._state[channel]
        if state.receiver is None:
            state.arrived += 1
            return
        (device, us), state.receiver = state.receiver, None
        self._take(now, device, channel, us)

    def _receive(self, now: float, device: int, channel: int, us: float) -> None:
        state, spec = self._state[channel], self._channels[channel]
        if spec.slots == 0:
            self._at(now + self._wires[spec.wire].latency_us, self._posted, channel)
        if not state.arrived:
            state.receiver = (device, us)
            return
        state.arrived -= 1
        self._take(now, device, channel, us)

    def _take(self, now: float, device: int, channel: int, us: float) -> None:
        spec = self._channels[channel]
        self._busy[device] += us
        if spec.slots:
            self._at(now + us + self._wires[spec.wire].latency_us, self._freed, channel)
        self._advance(device, now + us)

    def _posted(self, now: float, channel: int) -> None:
        state = self._state[channel]
        if state.unposted:
            state.unposted -= 1
            self._occupy(now, channel)
        else:
            state.posted += 1

    def _freed(self, now: float, channel: int) -> None:
        state = self._state[channel]
        state.freed += 1
        if state.sender is not None:
            (device, us), state.sender = state.sender, None
            self._send(now, device, channel, us)

    def _gather(self, now: float, device: int, group: int, us: float) -> None:
        here = self._gathered[group]
        here.append(device)
        if len(here) < self._groups[group]:
            return
        self._gathered[group] = []
        for member in here:
            self._busy[member] += us
            self._advance(member, now + us)
