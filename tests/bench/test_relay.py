"""The relay: a link that takes its delay and its rate, and loses nothing. Real packets.

What is said through it is bounded in count; namespaces and relay are gone afterwards. Without root
there is no such link, and the reason is the error's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import pytest

from dnic.bench import namespaces as rooms
from dnic.bench.linkspec import LinkSpec
from dnic.bench.namespaces import Namespace, namespaces, unavailable
from dnic.bench.relay import Lane, Relay, Switch, relay
from dnic.errors import RuntimeFault

needs_root = pytest.mark.skipif(unavailable() is not None, reason=str(unavailable()))

PINGS = 10
SENT_BYTES = 2_000_000
DELAY_US, RATE_BYTES_PER_S = 30_000.0, 4e6

# Numbers back and forth, one at a time; then many bytes one way, of which the sum must be right.
SERVER = f"""
import hashlib, socket
listener = socket.create_server(("10.77.0.1", 5000))
peer, _ = listener.accept()
for _ in range({PINGS}):
    peer.sendall(peer.recv(1))
left, digest = {SENT_BYTES}, hashlib.sha256()
while left:
    part = peer.recv(65536)
    digest.update(part)
    left -= len(part)
peer.sendall(digest.digest())
"""
CLIENT = f"""
import hashlib, json, random, socket, time
for _ in range(100):
    try:
        peer = socket.create_connection(("10.77.0.1", 5000), timeout=20)
        break
    except ConnectionRefusedError:
        time.sleep(0.05)
peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
times = []
for number in range({PINGS}):
    begin = time.monotonic()
    peer.sendall(bytes([number]))
    assert peer.recv(1) == bytes([number])
    times.append(time.monotonic() - begin)
data = random.Random(0).randbytes({SENT_BYTES})
begin = time.monotonic()
peer.sendall(data)
got = peer.recv(32)
whole = time.monotonic() - begin
assert got == hashlib.sha256(data).digest()
print(json.dumps([times, whole]))
"""


def test_a_lane_takes_time_for_bytes_and_distance() -> None:
    lane = Lane()
    lane.put(b"x" * 100, now_s=1.0, delay_s=0.5, bytes_per_s=200.0)
    lane.put(b"y" * 50, now_s=1.1, delay_s=0.5, bytes_per_s=200.0)  # waits for the first to leave
    lane.put(b"z" * 10, now_s=9.0, delay_s=0.5, bytes_per_s=float("inf"))
    assert [due for due, _ in lane.packets] == [2.0, 2.25, 9.5]
    assert lane.queued_bytes == 160
    assert list(lane.due(1.99)) == []
    assert list(lane.due(2.25)) == [b"x" * 100, b"y" * 50]
    assert lane.queued_bytes == 10 and lane.packets == deque([(9.5, b"z" * 10)])


def test_a_full_lane_holds_its_host_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dnic.bench.relay.LANE_BYTES", 60)
    ends = [os.pipe() for _ in range(2)]
    addresses = ["10.77.0.1", "10.77.0.2"]
    for reading, _ in ends:
        os.set_blocking(reading, False)
    tuns = [reading for reading, _ in ends]
    try:
        switch = Switch(tuns, addresses, delay_s=60.0, bytes_per_s=1e9)
        assert switch.readable() == tuns
        header = bytes([0x45, *[0] * 15, 10, 77, 0, 2])
        os.write(ends[0][1], header + b"x" * 60)
        switch.read(tuns[0])
        assert switch.readable() == tuns[1:]
        assert 59 < (switch.deliver() or 0) < 60
        os.write(ends[1][1], bytes([0x60] * 40))  # IPv6 is for nobody
        switch.read(tuns[1])
        assert switch.readable() == tuns[1:] and switch.packets == 0
    finally:
        for pair in ends:
            os.close(pair[0])
            os.close(pair[1])


def test_without_root_the_reason_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(RuntimeFault, match="only root may make network namespaces") as caught:
        namespaces(2).__enter__()
    assert "--link" in str(caught.value)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(rooms, "_TUN", Path("/nowhere/tun"))
    assert unavailable() == "/nowhere/tun is missing"


@pytest.fixture
def joined() -> Iterator[tuple[list[Namespace], Relay]]:
    with namespaces(2) as members, relay(LinkSpec(DELAY_US, RATE_BYTES_PER_S), members) as wire:
        yield members, wire


@needs_root
@pytest.mark.processes
def test_delay_and_rate_are_there_and_nothing_is_lost(
    joined: tuple[list[Namespace], Relay], tmp_path: Path
) -> None:
    members, wire = joined
    server = members[0].start([sys.executable, "-c", SERVER])
    with (tmp_path / "client").open("wb") as log:
        client = members[1].start([sys.executable, "-c", CLIENT], log=log)
        try:
            assert client.wait(60) == 0, (tmp_path / "client").read_text()
            assert server.wait(10) == 0
        finally:
            for process in (client, server):
                process.kill()
                process.wait()
    times_s, whole_s = json.loads((tmp_path / "client").read_text())
    # Lower bounds only: a busy machine makes everything later, nothing earlier.
    assert min(times_s) >= 2 * DELAY_US / 1e6
    assert whole_s >= SENT_BYTES / RATE_BYTES_PER_S + 2 * DELAY_US / 1e6
    figures = wire.figures()
    assert figures["bytes"] >= SENT_BYTES and figures["packets"] >= 2 * PINGS
    assert 0 < figures["cpu_s"] < figures["seconds"]


@needs_root
def test_nothing_is_left_behind() -> None:
    def devices() -> set[str]:
        return {path.name for path in Path("/sys/class/net").iterdir()}

    before = devices()
    with pytest.raises(KeyboardInterrupt), namespaces(2) as members, relay(LinkSpec(), members):
        assert all(Path(f"/proc/{member.holder}").exists() for member in members)
        raise KeyboardInterrupt
    assert not any(Path(f"/proc/{member.holder}").exists() for member in members)
    assert devices() == before


@needs_root
def test_a_bench_that_is_killed_leaves_nothing_behind(tmp_path: Path) -> None:
    code = (
        "import sys, time\n"
        "from dnic.bench.namespaces import namespaces\n"
        "from dnic.bench.relay import relay\n"
        "from dnic.bench.linkspec import LinkSpec\n"
        "with namespaces(1) as members, relay(LinkSpec(), members) as wire:\n"
        "    print(members[0].holder, wire._process.pid, flush=True)\n"
        "    time.sleep(60)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        children = [int(word) for word in process.stdout.readline().split()]
    process.kill()
    process.wait()
    assert len(children) == 2
    deadline = time.monotonic() + 20
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not any(_alive(child) for child in children)


def _alive(process: int) -> bool:
    """Whether it runs; a zombie, which nobody may have buried yet, does not."""
    try:
        return "Z" not in Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
