"""Two processes of this machine, each on a core of its own, measured together.

Starts `dnic.cost.pair_rank` twice and reads what the first one prints. The ranks meet through a
file, so that no port is needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path

from dnic.cost.child import cores

_TIMEOUT_S = 50.0
_RANKS = 2


class PairFailed(Exception):
    """Two processes could not be measured; says why. Internal: a profile does without."""


@dataclass(frozen=True)
class PairFigures:
    """What two busy processes do.

    Attributes:
        crowded_arithmetic, crowded_memory, crowded_overhead: see `Crowded`; at least 1.
        link_bytes_per_s, link_latency_us: of the engine's own transport, one way.
        message_bytes_per_s: bytes a second at which each side's CPU hands messages on.
        reduce_bytes_per_s, reduce_latency_us, reduce_tensor_us, skew: what DDP adds to a step; see
            `DeviceProfile`.
        microbatch_us: see `DeviceProfile`.
    """

    crowded_arithmetic: float
    crowded_memory: float
    crowded_overhead: float
    link_bytes_per_s: float
    link_latency_us: float
    message_bytes_per_s: float
    reduce_bytes_per_s: float
    reduce_latency_us: float
    reduce_tensor_us: float
    skew: float
    microbatch_us: float


def measure_pair(threads: int, progress: Callable[[str], None] | None = None) -> PairFigures:
    """Measure two processes.

    Args:
        threads: that each computes with.
        progress: told what is being measured.

    Raises:
        PairFailed: there is no second core for the threads of each, or a process failed.
    """
    allowed = cores()
    if len(allowed) < _RANKS * threads:
        raise PairFailed(f"{len(allowed)} core(s) for two processes of {threads} thread(s)")
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            _start(rank, threads, allowed[rank * threads :][:threads], Path(folder) / "meet")
            for rank in range(_RANKS)
        ]
        watchdog = threading.Timer(_TIMEOUT_S, _end, [processes])
        watchdog.start()
        try:
            found = _read(processes[0], progress)
            complaints = [process.communicate()[1] for process in processes]
        finally:
            watchdog.cancel()
            _end(processes)
    if found is None or any(process.returncode for process in processes):
        lines = [line for text in complaints for line in text.strip().splitlines()[-1:]]
        raise PairFailed(lines[0] if lines else f"no answer within {_TIMEOUT_S:.0f} s")
    return PairFigures(**{f.name: float(found[f.name]) for f in fields(PairFigures)})


def _start(rank: int, threads: int, on: list[int], meet: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "dnic.cost.pair_rank", str(rank), str(threads), str(meet)]
    return subprocess.Popen(
        [*command, ",".join(map(str, on))],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads)},
    )


def _read(
    process: subprocess.Popen[str], progress: Callable[[str], None] | None
) -> dict[str, float] | None:
    """Lines of JSON: what is being measured, and at last the figures."""
    for line in process.stdout or ():
        try:
            said = json.loads(line)
        except ValueError:
            continue  # Something else that was printed.
        if isinstance(said, str):
            if progress is not None:
                progress(said)
        elif isinstance(said, dict):
            return said
    return None


def _end(processes: list[subprocess.Popen[str]]) -> None:
    for process in processes:
        if process.poll() is None:
            process.kill()
