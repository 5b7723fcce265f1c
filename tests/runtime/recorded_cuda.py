"""A `torch.cuda` that computes on the CPU and remembers what is ordered before what.

Streams and events are names with vector clocks; every operation on a tensor, seen by a dispatch
mode, is a read or write of its memory on the current stream, every message one on the stream of its
communicator. Two accesses to one memory, one of them a write, must be ordered by events, whatever
the streams' speed: if neither comes before the other, that is a race. Messages really move, by gloo
or by a dictionary; only their order is pretended.

`on_recorded_gpus` puts it under the engine of a rank. `broken` names a rule of
`dnic.runtime.nccl_links` that is then left out. `log` keeps what each stream was given, in the
order in which the host gave it: `["record" or "wait", stream, event]`, `["send" or "receive",
stream, tag]`, `["host", event]`.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from dnic.runtime.links import Receiver, wait
from dnic.runtime.nccl_links import NcclReceiver
from dnic.runtime.streams import CudaStreams

Clock = dict[str, int]
HOST = "host"
AHEAD, AT_NEED = "ahead", "at need"


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
        self.log: list[list[Any]] = []
        self._moments = 0

    def enqueue(self, stream: str) -> Clock:
        """A new operation of a stream; it comes after all that the host has waited for."""
        clock = self._clocks[stream]
        merge(clock, self._clocks[HOST])
        clock[stream] = clock.get(stream, 0) + 1
        return clock

    def moment(self, stream: str) -> Moment:
        self._moments += 1
        self.log.append(["record", stream, self._moments])
        return Moment(self._moments, dict(self.enqueue(stream)))

    def after(self, stream: str, moment: Moment) -> None:
        merge(self._clocks[stream], moment.clock)
        self.log.append(["host"] if stream == HOST else ["wait", stream])
        self.log[-1].append(moment.number)

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


@dataclass(frozen=True)
class Moment:
    """When a stream has done what it was given until now."""

    number: int
    clock: Clock


def merge(clock: Clock, other: Clock) -> None:
    for stream, at in other.items():
        if clock.get(stream, 0) < at:
            clock[stream] = at


class Event:
    """A moment of a stream."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._at_s = 0.0

    def record(self, stream: Stream) -> None:
        self.moment, self._at_s = self._order.moment(stream.name), time.perf_counter()

    def synchronize(self) -> None:
        self._order.after(HOST, self.moment)

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
            self._order.after(self.name, event.moment)

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
        moment: at which it is over.
        on: who waits in `wait`: the current stream, or with gloo the host.
        finish: waits in truth.
        rule: without which nobody waits.
    """

    def __init__(
        self, order: Order, moment: Moment, on: str | None, finish: Callable[[], Any], rule: str
    ) -> None:
        self._order, self._moment, self._on = order, moment, on
        self._finish, self._rule = finish, rule

    def wait(self) -> None:
        self._finish()
        if self._order.broken != self._rule:
            self._order.after(self._on or self._order.current, self._moment)


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
        work = self._started(buffer, f"message:{tag} to {peer}", tag, False, "1")
        work._finish = self._send(buffer, peer, tag)
        return work

    def irecv(self, buffer: Tensor, peer: int, *, group: object, tag: int) -> Work:
        work = self._started(buffer, f"message:{tag} from {peer}", tag, True, "4")
        work._finish = self._receive(buffer, peer, tag)
        return work

    def _started(self, buffer: Tensor, stream: str, tag: int, write: bool, rule: str) -> Work:
        order = self._order
        if not self._host and (write or order.broken != "2"):
            order.after(stream, order.moment(order.current))
        order.enqueue(stream)
        order.access(buffer, write, stream)
        order.log.append(["receive" if write else "send", stream, tag])
        moment = order.moment(stream)
        return Work(order, moment, HOST if self._host else None, lambda: None, rule)


class AheadReceiver(NcclReceiver):
    """Posts receives ahead, as gloo wants them: what `NcclReceiver` does not do."""

    expect = Receiver.expect
    _expect = Receiver._expect

    def _await(self, message: int) -> None:
        work = self._works[message % self._number]
        assert work is not None
        wait(work, self._link)


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
    if broken == AHEAD:
        transport.NcclReceiver = AheadReceiver
    if broken == AT_NEED:
        NcclReceiver.expect = Receiver.expect
    worker.Streams = SimpleNamespace(of=lambda device: recorded)
    Watch(order).__enter__()
    return order


def report(order: Order, path: Path) -> None:
    content = {"races": sorted(set(order.races)), "counts": order.counts, "log": order.log}
    path.write_text(json.dumps(content))


INSTALL = """import sys

sys.path.insert(0, {here!r})
import recorded_cuda

ORDER = recorded_cuda.install({broken!r}, host={host})

"""
REPORT = """
    import os
    from pathlib import Path

    path = Path(__file__).with_name(f"order{os.environ['RANK']}.json")
    recorded_cuda.report(ORDER, path)
"""


def on_recorded_gpus(*, broken: str = "", host: bool = False) -> Callable[[str, str], str]:
    """Makes every rank's `train.py` run the engine on a recorded GPU: the `edit` of a bundle."""

    def edit(name: str, text: str) -> str:
        if name != "train.py":
            return text
        here = str(Path(__file__).parent)
        return INSTALL.format(here=here, broken=broken, host=host) + text.rstrip() + REPORT

    return edit


def read_orders(folder: Path) -> list[dict[str, Any]]:
    """What the ranks of a bundle have reported."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("order*.json"))]
