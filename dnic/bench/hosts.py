"""Several hosts on this machine, joined by a slow link: where the ranks of a run can be far apart.

A host is a network namespace with an address of its own. A run is started on each of them by
torchrun, as on separate machines: `--nnodes`, `--node-rank`, `--master-addr`, `--master-port`. The
hosts share this machine's files and cores; each gets one core, while there are enough.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dnic.bench.linkspec import LinkSpec
from dnic.bench.namespaces import Namespace, namespaces
from dnic.bench.relay import Relay, relay
from dnic.runtime.launch import RankFault, forget, run_environment, run_fault
from dnic.runtime.plan import Mode

FIRST_PORT = 29500
_POLL_S = 0.02
_END_S = 10.0
_TAIL_LINES = 40


class Hosts:
    """Hosts that can run ranks.

    Args:
        members: the namespaces, in the order of the ranks.
        wire: the relay between them.
    """

    def __init__(self, members: Sequence[Namespace], wire: Relay) -> None:
        self.members = members
        self._wire = wire

    def launch(
        self,
        bundle: Path,
        *,
        mode: Mode,
        out: Path,
        processes: int | None = None,
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Trains a bundle, one rank on each host, and waits for the end.

        Args:
            bundle: the bundle.
            mode: of `train.py`.
            out: folder of the run.
            processes: on how many of the hosts; None: all.
            extra: further options of `train.py`.
            environment: further environment variables of the processes.

        Raises:
            RankFault: a rank failed.
        """
        count = processes or len(self.members)
        out.mkdir(parents=True, exist_ok=True)
        forget(out)
        train = [str(bundle.resolve() / "train.py"), f"--mode={mode}", f"--out={out.resolve()}"]
        started: list[subprocess.Popen[bytes]] = []
        try:
            for node, member in enumerate(self.members[:count]):
                command = [*_torchrun(node, count, self.members), *train, *extra]
                variables = run_environment(pin=True, quiet=True) | dict(environment or {})
                variables["GLOO_SOCKET_IFNAME"] = member.device
                with _log(out, node).open("wb") as log:
                    started.append(
                        member.start(command, environment=variables, log=log, core=core_of(node))
                    )
            failed = _wait(started)
        finally:
            _end(started)
        if failed is not None:
            node, status = failed
            raise logged_fault(out, status, _log(out, node))

    def relay_figures(self) -> dict[str, Any]:
        """What the relay has moved and taken so far."""
        return self._wire.figures()


@contextmanager
def hosts_behind(link: LinkSpec, count: int) -> Iterator[Hosts]:
    """Hosts, each joined to each other by such a link; gone afterwards, whatever happens.

    Raises:
        RuntimeFault: there can be none on this machine, with the reason.
    """
    with namespaces(count) as members, relay(link, members) as wire:
        yield Hosts(members, wire)


def _torchrun(node: int, count: int, members: Sequence[Namespace]) -> list[str]:
    return [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nnodes={count}",
        "--nproc-per-node=1",
        f"--node-rank={node}",
        f"--master-addr={members[0].address}",
        f"--master-port={FIRST_PORT}",
        f"--local-addr={members[node].address}",
    ]


def core_of(node: int) -> int:
    """The core of a host's rank."""
    allowed = sorted(os.sched_getaffinity(0))
    return allowed[node % len(allowed)]


def _log(out: Path, node: int) -> Path:
    return out / f"host{node}.log"


def logged_fault(out: Path, status: int, log: Path) -> RankFault:
    """What a run failed of: its report, or the last lines of the failed rank's log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    tail = "".join(lines[-_TAIL_LINES:])
    fault = run_fault(out, status, tail)
    # A rank that left no report may have said something before it went.
    fault.report = fault.report or tail
    return fault


def _wait(started: Sequence[subprocess.Popen[bytes]]) -> tuple[int, int] | None:
    """Waits until all are over; the first that failed, and its status, as soon as one has."""
    while True:
        statuses = [process.poll() for process in started]
        for node, status in enumerate(statuses):
            if status:
                return node, status
        if None not in statuses:
            return None
        time.sleep(_POLL_S)


def _end(started: Sequence[subprocess.Popen[bytes]]) -> None:
    """Ends torchruns, which end their children when asked to."""
    for process in started:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
    for process in started:
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
