"""The program that ranks of a bench are forked from: it has imported what they import.

    python -m dnic.bench.forked

One line of JSON on its standard input is one run: `{"argv": [...], "ranks": [{"environment",
"core", "namespace", "log"}, ...]}`; one line comes back when the run is over, with the exit status
of every rank, negative for a signal. A rank that fails ends the others, as torchrun does. When the
input ends, so do the program and what it has started.

Python's own `multiprocessing.forkserver` does not do: it imports the caller's main module into
every child, and its children stay in the server's network namespace. The program itself runs
nothing of a model and never asks for a device, so that its children may.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import select
import signal
import sys
import time
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

_POLL_S = 0.02
_GRACE_S = 2.0  # less than those wait who let the program go
_CLONE_NEWNET = 0x40000000


def main() -> None:
    """Forks ranks until the input ends."""
    _imports()
    asked = sys.stdin.fileno()
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    buffer = b""
    while True:
        read = os.read(asked, 65536)
        if not read:
            return
        buffer += read
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            run = json.loads(line)
            statuses = _run(run["argv"], run["ranks"], asked)
            answers.write(json.dumps(statuses) + "\n")
            answers.flush()


def _imports() -> None:
    import numpy  # noqa: F401
    import torch.distributed.pipelining
    import torch.nn.parallel  # noqa: F401

    import dnic.runtime
    import dnic.runtime.worker  # noqa: F401


def _run(argv: Sequence[str], ranks: Sequence[Mapping[str, Any]], asked: int) -> list[int]:
    """Starts the ranks and waits for them; they are ended where the input ends first."""
    children = [_fork(argv, rank) for rank in ranks]
    statuses: dict[int, int] = {}
    kill_at_s = float("inf")
    while len(statuses) < len(children):
        for child in children:
            if child not in statuses:
                found, status = os.waitpid(child, os.WNOHANG)
                if found:
                    statuses[child] = os.waitstatus_to_exitcode(status)
        over = any(statuses.values()) or _ended(asked)
        now_s = time.monotonic()
        if over and kill_at_s == float("inf"):
            kill_at_s = now_s + _GRACE_S
            _send(signal.SIGTERM, set(children) - set(statuses))
        elif now_s > kill_at_s:
            _send(signal.SIGKILL, set(children) - set(statuses))
    return [statuses[child] for child in children]


def _ended(asked: int) -> bool:
    """Whether the input has ended; waits a little. One run is asked for at a time."""
    readable, _, _ = select.select([asked], [], [], _POLL_S)
    return bool(readable)


def _send(number: signal.Signals, children: set[int]) -> None:
    for child in children:
        os.kill(child, number)


def _fork(argv: Sequence[str], rank: Mapping[str, Any]) -> int:
    child = os.fork()
    if child == 0:
        _become(argv, rank)
    return child


def _become(argv: Sequence[str], rank: Mapping[str, Any]) -> NoReturn:
    """What a child does: it becomes a rank, and never returns to the loop of its parent."""
    status = 1
    try:
        os.setsid()
        log = os.open(rank["log"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        nothing = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(source, target)
        if rank["namespace"] is not None:
            _enter(rank["namespace"])
        if rank["core"] is not None:
            os.sched_setaffinity(0, {rank["core"]})
        os.environ.clear()
        os.environ.update(rank["environment"])
        status = _train(argv)
    except BaseException:  # noqa: BLE001 - a child that fails must not go on as its parent
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _train(argv: Sequence[str]) -> int:
    import torch

    # What OpenMP would have read, had it not been loaded before the variable was set.
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    sys.argv = list(argv)
    sys.path[0] = str(Path(argv[0]).parent)
    try:
        runpy.run_path(argv[0], run_name="__main__")
    except SystemExit as over:
        if over.code is None or isinstance(over.code, int):
            return over.code or 0
        sys.stderr.write(f"{over.code}\n")
        return 1
    return 0


def _enter(holder: int) -> None:
    """Enters the network namespace of a process."""
    namespace = os.open(f"/proc/{holder}/ns/net", os.O_RDONLY)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    os.close(namespace)


if __name__ == "__main__":
    main()
