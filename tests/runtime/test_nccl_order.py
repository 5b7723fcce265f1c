"""The streams of all ranks come to their end, although NCCL's kernels wait for one another.

What every rank gave its streams is recorded (`recorded_cuda.py`), then played on devices on which a
send and its receive run only together, each when it is first on its stream.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator
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
        stop: before which entry the host waits for its whole device; None: never.
    """

    def __init__(self, log: Log, stop: int | None = None) -> None:
        self._log = deque(log)
        self._stop_at = len(log) - stop if stop is not None else None  # entries that are left then
        self._given: dict[str, deque[list[Any]]] = defaultdict(deque)
        self._passed: set[int] = set()

    @property
    def done(self) -> bool:
        return not self._log and not any(self._given.values())

    def run(self) -> bool:
        """Does all that needs no other rank; returns whether there was something."""
        moved = False
        while self._log and not self._waits():
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

    def _waits(self) -> bool:
        if len(self._log) == self._stop_at and any(self._given.values()):
            return True
        kind, moment = self._log[0][0], self._log[0][-1]
        return kind == "host" and moment not in self._passed

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


def ends(logs: list[Log], stops: dict[int, int]) -> bool:
    """Whether all comes to its end where some ranks wait for their whole devices meanwhile."""
    devices = [Device(log, stops.get(rank)) for rank, log in enumerate(logs)]
    play(devices)
    return all(device.done for device in devices)


def stops_alone(logs: list[Log], *, every: int = 6) -> Iterator[dict[int, int]]:
    """One rank waits for its device: every sixth place of each rank."""
    for rank, log in enumerate(logs):
        for stop in range(1 + rank, len(log), every):
            yield {rank: stop}


def stops_together(logs: list[Log]) -> Iterator[dict[int, int]]:
    """All ranks do, in the same part of the run."""
    generator = random.Random(5)
    for _ in range(60):
        share = generator.random()
        yield {
            rank: max(1, min(int(len(log) * share) + generator.randrange(-12, 12), len(log) - 1))
            for rank, log in enumerate(logs)
        }


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
        ("mlp3", ("--mode=stale",)),
        ("skip3", ()),
        ("mlp3", ("--microbatches=4", "--max-steps=3")),
    ],
)
def test_ranks_may_wait_for_their_devices_at_any_time(
    recorded: Any, bundle: Make, run_ranks: Run, kind: str, arguments: tuple[str, ...]
) -> None:
    """Freeing memory waits for the device, and nobody knows when torch does that.

    Several ranks at once may do so where batches are not cut; else they may not.
    """
    logs = record(recorded, bundle, run_ranks, kind, *arguments)
    assert ends(logs, {})
    assert all(ends(logs, stops) for stops in stops_alone(logs))
    if "--microbatches=4" not in arguments:
        assert all(ends(logs, stops) for stops in stops_together(logs))


def test_with_receives_posted_ahead_one_might_wait_for_ever(
    recorded: Any, bundle: Make, run_ranks: Run
) -> None:
    logs = record(recorded, bundle, run_ranks, "mlp2", broken=recorded.AHEAD)
    assert ends(logs, {})
    assert not all(ends(logs, stops) for stops in stops_alone(logs))


def test_with_receives_posted_at_need_two_might_wait_for_one_another(
    recorded: Any, bundle: Make, run_ranks: Run
) -> None:
    logs = record(recorded, bundle, run_ranks, "mlp2", broken=recorded.AT_NEED)
    assert all(ends(logs, stops) for stops in stops_alone(logs))
    assert not all(ends(logs, stops) for stops in stops_together(logs))
