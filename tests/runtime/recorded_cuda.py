"""A `torch.cuda` that computes on the CPU and remembers what is ordered before what.

Streams and events are names with vector clocks; every operation on a tensor, seen by a dispatch
mode, is a read or write of its memory on the current stream, every message one on the stream of its
communicator. Two accesses to one memory, one of them a write, must be ordered by events, whatever
the streams' speed: if neither comes before the other, that is a race. Messages really move, by gloo
or by a dictionary; only their order is pretended.

`install` puts it under the engine of a process that is a rank. `broken` names a rule of
`dnic.runtime.nccl_links` that is then left out.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dnic.runtime.streams import CudaStreams

Clock = dict[str, int]
RULES = ("1", "2", "3", "4")
HOST = "host"


class Order:
    """What has happened on which stream, and after what."""

    def __init__(self, broken: str = "") -> None:
        self.broken = broken
        self.current = "compute"
        self.races: list[str] = []
        self.counts: Counter[str] = Counter()
        self._clocks: dict[str, Clock] = defaultdict(dict)
        self._last: dict[int, dict[tuple[str, bool], int]] = defaultdict(dict)
        self._kept: dict[int, Any] = {}
        self.host_slots: set[int] = set()

    def enqueue(self, stream: str) -> Clock:
        """A new operation of a stream; it comes after all that the host has waited for."""
        clock = self._clocks[stream]
        merge(clock, self._clocks[HOST])
        clock[stream] = clock.get(stream, 0) + 1
        return clock

    def moment(self, stream: str) -> Clock:
        return dict(self.enqueue(stream))

    def after(self, stream: str, moment: Clock) -> None:
        merge(self._clocks[stream], moment)

    def access(self, tensor: Tensor, write: bool, stream: str) -> None:
        """Reads or writes a tensor's memory in the newest operation of a stream."""
        storage = tensor.untyped_storage()
        where = storage.data_ptr()
        if not where:
            return
        self._kept.setdefault(where, storage)  # so that no other tensor gets the same address
        clock = self._clocks[stream]
        for (other, wrote), at in self._last[where].items():
            if other != stream and (write or wrote) and clock.get(other, 0) < at:
                what = f"{other} {'wrote' if wrote else 'read'} and {stream} "
                self.races.append(what + ("writes" if write else "reads"))
        self._last[where][stream, write] = clock[stream]
        self.counts[f"{stream.split(':')[0]} {'write' if write else 'read'}"] += 1


def merge(clock: Clock, other: Clock) -> None:
    for stream, at in other.items():
        if clock.get(stream, 0) < at:
            clock[stream] = at


class Event:
    """A moment of a stream."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.clock: Clock = {}
        self._at_s = 0.0

    def record(self, stream: Stream) -> None:
        self.clock, self._at_s = self._order.moment(stream.name), time.perf_counter()

    def synchronize(self) -> None:
        self._order.after(HOST, self.clock)

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: Event) -> float:
        return (later._at_s - self._at_s) * 1e3


class Stream:
    """A stream."""

    def __init__(self, order: Order, name: str) -> None:
        self._order = order
        self.name = name

    def wait_event(self, event: Event) -> None:
        if not (self._order.broken == "3" and self.name.startswith("lane")):
            self._order.after(self.name, event.clock)

    def synchronize(self) -> None:
        self._order.after(HOST, self._order.moment(self.name))


class Cuda:
    """What `CudaStreams` uses of `torch.cuda`."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._lanes = 0

    def current_stream(self, device: torch.device) -> Stream:
        return Stream(self._order, self._order.current)

    def Stream(self, device: torch.device) -> Stream:  # noqa: N802
        self._lanes += 1
        return Stream(self._order, f"lane:{self._lanes}")

    def Event(self, enable_timing: bool = False) -> Event:  # noqa: N802
        return Event(self._order)

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        before, self._order.current = self._order.current, stream.name
        yield
        self._order.current = before


class Recorded(CudaStreams):
    """Streams of a device that is the CPU."""

    def __init__(self, order: Order) -> None:
        super().__init__(torch.device("cpu"), Cuda(order))
        self._order = order

    def host_buffers(self, number: int, nbytes: int) -> list[Tensor]:
        buffers = [torch.empty(nbytes, dtype=torch.uint8) for _ in range(number)]
        self._order.host_slots |= {buffer.data_ptr() for buffer in buffers}
        return buffers


class Watch(TorchDispatchMode):
    """Puts every operation on the current stream."""

    def __init__(self, order: Order) -> None:
        super().__init__()
        self._order = order

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function.namespace == "aten" and not function.is_view:
            stream = self._order.current
            self._order.enqueue(stream)
            given = dict(zip([a.name for a in function._schema.arguments], args, strict=False))
            for argument in function._schema.arguments:
                value = (given | kwargs).get(argument.name)
                write = argument.alias_info is not None and argument.alias_info.is_write
                for leaf in tree_flatten(value)[0]:
                    if isinstance(leaf, Tensor):
                        self._order.access(leaf, write, stream)
            if function is torch.ops.aten.copy_.default:
                there = args[0].untyped_storage().data_ptr()
                if there in self._order.host_slots and not kwargs.get("non_blocking"):
                    # From the device to the host: it waits.
                    self._order.after(HOST, self._order.moment(stream))
        return function(*args, **kwargs)


class Work:
    """A message under way.

    Args:
        order: of everything.
        clock: of the operation.
        on: who waits in `wait`: the current stream, or with gloo the host.
        finish: waits in truth.
        rule: without which nobody waits.
    """

    def __init__(
        self, order: Order, clock: Clock, on: str | None, finish: Callable[[], Any], rule: str
    ) -> None:
        self._order, self._clock, self._on = order, clock, on
        self._finish, self._rule = finish, rule

    def wait(self) -> None:
        self._finish()
        if self._order.broken != self._rule:
            self._order.after(self._on or self._order.current, self._clock)


class Messages:
    """What the links use of `torch.distributed`.

    Args:
        order: of everything.
        send, receive: really move a message; they return what waits for it.
        host: whether this is gloo, which knows no streams.
    """

    def __init__(
        self,
        order: Order,
        send: Callable[..., Callable[[], Any]],
        receive: Callable[..., Callable[[], Any]],
        *,
        host: bool = False,
    ) -> None:
        self._order = order
        self._send, self._receive = send, receive
        self._host = host

    def isend(self, buffer: Tensor, peer: int, *, group: object, tag: int) -> Work:
        work = self._started(buffer, f"message:{tag} to {peer}", False, "1")
        work._finish = self._send(buffer, peer, tag)
        return work

    def irecv(self, buffer: Tensor, peer: int, *, group: object, tag: int) -> Work:
        work = self._started(buffer, f"message:{tag} from {peer}", True, "4")
        work._finish = self._receive(buffer, peer, tag)
        return work

    def _started(self, buffer: Tensor, stream: str, write: bool, rule: str) -> Work:
        order = self._order
        if not self._host and (write or order.broken != "2"):
            order.after(stream, order.moment(order.current))
        order.enqueue(stream)
        order.access(buffer, write, stream)
        clock = order.moment(stream)
        return Work(order, clock, HOST if self._host else None, lambda: None, rule)


def install(broken: str = "", *, host: bool = False) -> Order:
    """Makes this process's engine run on a recorded GPU; `host`: through main memory and gloo."""
    from torch import distributed as dist

    from dnic.runtime import links, transport, worker

    order = Order(broken)
    recorded = Recorded(order)

    def send(buffer: Tensor, peer: int, tag: int) -> Callable[[], Any]:
        return dist.isend(buffer, peer, tag=tag).wait

    def receive(buffer: Tensor, peer: int, tag: int) -> Callable[[], Any]:
        return dist.irecv(buffer, peer, tag=tag).wait

    links.dist = Messages(order, send, receive, host=host)
    transport.available = lambda: False
    worker.Streams = SimpleNamespace(of=lambda device: recorded)
    Watch(order).__enter__()
    return order


def report(order: Order, path: Path) -> None:
    content = {"races": sorted(set(order.races)), "counts": order.counts}
    path.write_text(json.dumps(content))
