"""A slow link in user space: IP packets read from one TUN device are later written to another.

The kernel's own `netem` is a module that many kernels lack. Here one process joins all hosts like a
switch: between every two there is a lane for each direction, with its own delay and rate. A packet
that finds its lane free leaves at once, takes its bytes over the rate, and the delay on top; others
queue behind it. Nothing is lost or reordered: where a lane is full, its host is not read until
there is room, and the kernel holds that host back. So the link is a kind one, and TCP never sees a
loss. A packet costs some 40 us of processor time, which the ranks of this machine lose; how much
that is in all is among the figures.

The process is a program of its own (`python -m dnic.bench.relay`), imports nothing heavy, and ends
when its standard input does, which the one who started it holds.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dnic.bench.held import let_go

if TYPE_CHECKING:
    from dnic.bench.linkspec import LinkSpec
    from dnic.bench.namespaces import Namespace

LANE_BYTES = 64 * 2**20
_PACKET_BYTES = 65536
_BURST = 32  # packets that are read from one host before the others get their turn
_NICENESS = -5  # a rank that computes must not hold the packets of others


@dataclass
class Lane:
    """One direction between two hosts.

    Attributes:
        free_at_s: when the last packet has left.
        queued_bytes: of all packets that are on their way.
        packets: with the times at which they arrive.
    """

    free_at_s: float = 0.0
    queued_bytes: int = 0
    packets: deque[tuple[float, bytes]] = field(default_factory=deque)

    def put(self, packet: bytes, now_s: float, delay_s: float, bytes_per_s: float) -> None:
        """Takes a packet on its way."""
        self.free_at_s = max(now_s, self.free_at_s) + len(packet) / bytes_per_s
        self.packets.append((self.free_at_s + delay_s, packet))
        self.queued_bytes += len(packet)

    def due(self, now_s: float) -> Iterator[bytes]:
        """The packets that have arrived, in order."""
        while self.packets and self.packets[0][0] <= now_s:
            _, packet = self.packets.popleft()
            self.queued_bytes -= len(packet)
            yield packet


class Switch:
    """The lanes between hosts.

    Args:
        tuns: other ends of the hosts' TUN devices.
        addresses: of the hosts, IPv4.
        delay_s: of every lane.
        bytes_per_s: of every lane.
    """

    def __init__(
        self, tuns: Sequence[int], addresses: Sequence[str], delay_s: float, bytes_per_s: float
    ) -> None:
        self._tuns = tuns
        packed = [bytes(map(int, address.split("."))) for address in addresses]
        self._delay_s, self._bytes_per_s = delay_s, bytes_per_s
        # By source, then by the address in the packet's header.
        self._lanes = [
            {address: Lane() for other, address in enumerate(packed) if other != source}
            for source in range(len(tuns))
        ]
        self._to = dict(zip(packed, tuns, strict=True))
        self.packets = self.nbytes = 0

    def readable(self) -> list[int]:
        """The hosts' ends that may be read: those of which no lane is full."""
        return [
            tun
            for tun, lanes in zip(self._tuns, self._lanes, strict=True)
            if all(lane.queued_bytes < LANE_BYTES for lane in lanes.values())
        ]

    def read(self, tun: int) -> None:
        """Takes what a host has sent; what is for nobody, such as IPv6, is dropped."""
        lanes = self._lanes[self._tuns.index(tun)]
        for _ in range(_BURST):
            try:
                packet = os.read(tun, _PACKET_BYTES)
            except BlockingIOError:
                return
            lane = lanes.get(packet[16:20]) if packet[0] >> 4 == 4 else None
            if lane is not None:
                lane.put(packet, time.monotonic(), self._delay_s, self._bytes_per_s)

    def deliver(self) -> float | None:
        """Hands over what is due; returns the seconds until more will be, None for nothing."""
        now_s = time.monotonic()
        waiting = []
        for lanes in self._lanes:
            for address, lane in lanes.items():
                for packet in lane.due(now_s):
                    with suppress(OSError):  # the host is being taken down
                        os.write(self._to[address], packet)
                    self.packets += 1
                    self.nbytes += len(packet)
                if lane.packets:
                    waiting.append(lane.packets[0][0])
        return max(0.0, min(waiting) - time.monotonic()) if waiting else None

    def run(self, orders: int, answers: int) -> None:
        """Goes on until `orders` ends; answers every byte that comes there with a line of JSON."""
        while True:
            wait_s = self.deliver()
            # Not epoll, which counts whole milliseconds: 125 kB at 1 Gb/s.
            ready, _, _ = select.select([orders, *self.readable()], [], [], wait_s)
            for end in ready:
                if end != orders:
                    self.read(end)
                elif not os.read(orders, 1):
                    return
                else:
                    os.write(answers, json.dumps(self.figures()).encode() + b"\n")

    def figures(self) -> dict[str, Any]:
        """What was moved so far, and what that took."""
        return {"packets": self.packets, "bytes": self.nbytes, "cpu_s": time.process_time()}


class Relay:
    """The running process, as its owner sees it."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._started_s = time.monotonic()

    def figures(self) -> dict[str, Any]:
        """`packets`, `bytes`, `cpu_s` (processor time) and `seconds` since it started."""
        orders, answers = self._process.stdin, self._process.stdout
        if orders is None or answers is None:
            raise ValueError("a relay without pipes")  # `relay` makes them
        orders.write(b"?")
        orders.flush()
        figures: dict[str, Any] = json.loads(answers.readline())
        return figures | {"seconds": time.monotonic() - self._started_s}


@contextmanager
def relay(link: LinkSpec, members: Sequence[Namespace]) -> Iterator[Relay]:
    """Joins namespaces, each with each other, by lanes like `link`."""
    hosts = [f"{member.tun},{member.address}" for member in members]
    rate = "inf" if link.rate_bytes_per_s == float("inf") else str(link.rate_bytes_per_s)
    process = subprocess.Popen(
        [sys.executable, "-m", "dnic.bench.relay", str(link.delay_us), rate, *hosts],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        pass_fds=[member.tun for member in members],
        start_new_session=True,
    )
    try:
        yield Relay(process)
    finally:
        let_go(process)


def main(arguments: Sequence[str]) -> None:
    """`DELAY_US BYTES_PER_S FD,ADDRESS FD,ADDRESS ...`."""
    delay_us, rate, *hosts = arguments
    with suppress(PermissionError):
        os.nice(_NICENESS)
    pairs = [host.split(",") for host in hosts]
    tuns = [int(tun) for tun, _ in pairs]
    addresses = [address for _, address in pairs]
    switch = Switch(tuns, addresses, float(delay_us) / 1e6, float(rate))
    switch.run(sys.stdin.fileno(), sys.stdout.fileno())


if __name__ == "__main__":
    main(sys.argv[1:])
