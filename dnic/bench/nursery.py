"""Short runs without the wait for imports: their ranks are forked from one that has imported.

A bench makes a hundred runs of a few seconds, and Python would spend more time on importing torch,
in torchrun and again in every rank, than on training. So one process imports once
(`dnic.bench.forked`), and the ranks of every run are its children. They have torchrun's environment
variables and run the bundle's own `train.py`; the steps that are measured are the same. Only on
Linux: elsewhere, and for everything that lasts, `dnic.runtime.launch` starts torchrun.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dnic.bench.held import let_go
from dnic.bench.hosts import FIRST_PORT, Hosts, core_of, logged_fault
from dnic.runtime.launch import RankFault, forget, run_environment
from dnic.runtime.plan import Mode

_PORTS = 1000


class Nursery:
    """Where ranks are forked.

    Args:
        process: `dnic.bench.forked`.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._runs = 0

    def launch(
        self,
        bundle: Path,
        *,
        mode: Mode,
        processes: int,
        out: Path,
        pin: bool,
        extra: Sequence[str] = (),
        environment: Mapping[str, str] | None = None,
        hosts: Hosts | None = None,
    ) -> None:
        """Trains a bundle and waits for the end.

        Args:
            bundle: the bundle.
            mode: of `train.py`.
            processes: how many.
            out: folder of the run.
            pin: whether each process gets a core of its own and one thread.
            extra: further options of `train.py`.
            environment: further environment variables of the processes.
            hosts: on which the processes run, one on each; None: all on this one.

        Raises:
            RankFault: a rank failed.
        """
        self._runs += 1
        out.mkdir(parents=True, exist_ok=True)
        forget(out)
        script = str(bundle.resolve() / "train.py")
        shared = run_environment(pin=pin, quiet=True) | dict(environment or {})
        shared["TORCHELASTIC_RUN_ID"] = f"bench-{os.getpid()}-{self._runs}"
        if mode != "backprop":
            shared |= _master(self._runs, hosts)
        logs = [out / f"rank{rank}.log" for rank in range(processes)]
        ranks: list[dict[str, Any]] = [
            {
                "environment": shared | _place(mode, rank, processes, hosts),
                "core": None if hosts is None else core_of(rank),
                "namespace": None if hosts is None else hosts.members[rank].holder,
                "log": str(log.resolve()),
            }
            for rank, log in enumerate(logs)
        ]
        argv = [script, f"--mode={mode}", f"--out={out.resolve()}", *extra]
        statuses = self._ask({"argv": argv, "ranks": ranks})
        failed = next((rank for rank, status in enumerate(statuses) if status), None)
        if failed is not None:
            raise logged_fault(out, statuses[failed], logs[failed])

    def _ask(self, run: Mapping[str, Any]) -> list[int]:
        process = self._process
        assert process.stdin is not None and process.stdout is not None
        with suppress(BrokenPipeError):  # then the answer is missing too
            process.stdin.write((json.dumps(run) + "\n").encode())
            process.stdin.flush()
        answer = process.stdout.readline()
        if not answer:
            raise RankFault(
                "the process that ranks are forked from has ended",
                rank=None,
                report="",
                exit_status=process.wait(),
            )
        statuses: list[int] = json.loads(answer)
        return statuses


@contextmanager
def nursery() -> Iterator[Nursery]:
    """A nursery; nothing of it is left afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "dnic.bench.forked"],
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for us, who then end it in order
    )
    try:
        yield Nursery(process)
    finally:
        let_go(process)


def _master(run: int, hosts: Hosts | None) -> dict[str, str]:
    """Where ranks meet: on the first host, or at a port of this machine that is free."""
    if hosts is not None:
        address, port = hosts.members[0].address, FIRST_PORT + run % _PORTS
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address, port = free.getsockname()
    return {"MASTER_ADDR": address, "MASTER_PORT": str(port)}


def _place(mode: Mode, rank: int, processes: int, hosts: Hosts | None) -> dict[str, str]:
    """What torchrun tells a rank of its place; plain backprop runs without torchrun."""
    if mode == "backprop":
        return {}
    alone = hosts is not None
    numbers = {
        "RANK": rank,
        "WORLD_SIZE": processes,
        "LOCAL_RANK": 0 if alone else rank,
        "LOCAL_WORLD_SIZE": 1 if alone else processes,
        "GROUP_RANK": rank if alone else 0,
    }
    place = {name: str(number) for name, number in numbers.items()}
    if hosts is not None:
        place["GLOO_SOCKET_IFNAME"] = hosts.members[rank].device
    return place
