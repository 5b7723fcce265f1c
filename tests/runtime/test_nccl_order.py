"""The streams of all ranks come to their end, although NCCL's kernels wait for one another.

What every rank gave its streams is recorded (`recorded_cuda.py`), then played on devices on which a
send and its receive run only together, each when it is first on its stream.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[..., Path]
Run = Callable[..., Any]
Log = list[list[Any]]

pytestmark = pytest.mark.processes


class Device:
    """One rank's streams, and its host, which gives them their work.

    Args:
        log: what the host does.
        stop: how much of it, before the host waits for its whole device; None: all.
    """

    def __init__(self, log: Log, stop: int | None = None) -> None:
        self._log = deque(log[:stop])
        self._given: dict[str, deque[list[Any]]] = defaultdict(deque)
        self._passed: set[int] = set()

    @property
    def done(self) -> bool:
        return not self._log and not any(self._given.values())

    def run(self) -> bool:
        """Does all that needs no other rank; returns whether there was something."""
        moved = False
        while self._log and (self._log[0][0] != "host" or self._log[0][1] in self._passed):
            entry = self._log.popleft()
            if entry[0] != "host":
                self._given[entry[1]].append(entry)
            moved = True
        for work in self._given.values():
            while work and work[0][0] in ("record", "wait"):
                kind, _, moment = work[0]
                if kind == "wait" and moment not in self._passed:
                    break
                self._passed.add(moment)
                work.popleft()
                moved = True
        return moved

    def first(self) -> dict[tuple[str, int], deque[list[Any]]]:
        """The messages that are first on their streams, by kind and tag."""
        return {(work[0][0], work[0][2]): work for work in self._given.values() if work}


def play(devices: list[Device]) -> None:
    """Runs all devices until none can go on."""
    moved = True
    while moved:
        moved = sum(device.run() for device in devices) > 0
        first = {key: work for device in devices for key, work in device.first().items()}
        for (kind, tag), work in first.items():
            if kind == "send" and ("receive", tag) in first:
                work.popleft()
                first["receive", tag].popleft()
                moved = True


def held(logs: list[Log], rank: int) -> list[int]:
    """Where a rank that waited for its whole device would wait for ever, the others going on."""
    found = []
    for stop in range(1, len(logs[rank])):
        devices = [Device(log, stop if r == rank else None) for r, log in enumerate(logs)]
        play(devices)
        if not devices[rank].done:
            found.append(stop)
    return found


def record(
    recorded: Any, bundle: Make, run_ranks: Run, kind: str, *arguments: str, broken: str = ""
) -> list[Log]:
    folder = bundle(kind, warmup_steps=1, edit=recorded.on_recorded_gpus(broken=broken))
    given = ("--no-checkpoint", "--no-evaluate", "--max-steps=5", *arguments)
    run_ranks(folder, int(kind[-1]), *given)
    logs = [order["log"] for order in recorded.read_orders(folder)]
    counts = [Counter(entry[0] for entry in log) for log in logs]
    assert sum(count["send"] for count in counts) == sum(count["receive"] for count in counts) > 5
    return logs


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("mlp2", ()),
        ("mlp3", ("--mode=exact", "--microbatches=4")),
        ("mlp3", ("--mode=stale",)),
        ("skip3", ()),
    ],
)
def test_all_streams_end_and_a_rank_may_wait_for_its_device_at_any_time(
    recorded: Any, bundle: Make, run_ranks: Run, kind: str, arguments: tuple[str, ...]
) -> None:
    """Freeing memory waits for the device, and nobody knows when torch does that."""
    logs = record(recorded, bundle, run_ranks, kind, *arguments)
    devices = [Device(log) for log in logs]
    play(devices)
    assert all(device.done for device in devices)
    for rank in range(len(logs)):
        assert held(logs, rank) == []


def test_with_receives_posted_ahead_it_might_wait_for_ever(
    recorded: Any, bundle: Make, run_ranks: Run
) -> None:
    logs = record(recorded, bundle, run_ranks, "mlp2", broken=recorded.AHEAD)
    devices = [Device(log) for log in logs]
    play(devices)
    assert all(device.done for device in devices)
    assert held(logs, 0)
