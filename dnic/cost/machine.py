"""This machine: what it is called, and the folder where what was measured on it is kept."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import tempfile
from pathlib import Path

import torch


def cpu_model() -> str:
    """The CPU's name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def available_bytes() -> int | None:
    """Memory that can be taken without swapping; None where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def cache_file(stem: str, threads: int) -> Path:
    """`STEM-<digest>.json` in `$XDG_CACHE_HOME/dnic` or `~/.cache/dnic`.

    The digest is of torch's version, the CPU, its cores and the threads.
    """
    home = os.environ.get("XDG_CACHE_HOME")
    folder = Path(home) if home else Path.home() / ".cache"
    machine = f"{torch.__version__}|{cpu_model()}|{os.cpu_count()}|{threads}"
    digest = hashlib.sha256(machine.encode()).hexdigest()[:16]
    return folder / "dnic" / f"{stem}-{digest}.json"


def store(path: Path, text: str) -> None:
    """Write beside the file and rename, so that a reader never sees half of it.

    Raises:
        OSError: the folder cannot be written to.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        Path(temporary).replace(path)
    finally:
        Path(temporary).unlink(missing_ok=True)
