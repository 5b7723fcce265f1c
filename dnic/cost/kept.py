"""Times that were measured before, on disk: one file for each machine and number of threads."""

from __future__ import annotations

import contextlib
import json
import math
from pathlib import Path

from dnic.cost.machine import cache_file, store

_VERSION = 1


class KeptTimes:
    """Lists of numbers by key, from earlier runs and from this one.

    A file that cannot be read is as good as none, a folder that cannot be written to is no error:
    the cache is a convenience.

    Args:
        threads: that operations were measured with.
        path: of the file; None for this machine's own.
    """

    def __init__(self, threads: int = 1, path: Path | None = None) -> None:
        self._path = path or cache_file("ops", threads)
        self._known = _read(self._path)
        self._new: dict[str, list[float]] = {}

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> list[float]:
        return self._known[key]

    def put(self, key: str, numbers: list[float], *, lasting: bool = True) -> None:
        """Remember; beyond this run only what is `lasting`."""
        self._known[key] = numbers
        if lasting:
            self._new[key] = numbers

    def save(self) -> None:
        """Add what is new to the file."""
        if not self._new:
            return
        # Others may have written meanwhile.
        times = {**_read(self._path), **self._new}
        with contextlib.suppress(OSError):
            store(self._path, json.dumps({"version": _VERSION, "times": times}))
            self._new = {}


def _read(path: Path) -> dict[str, list[float]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(content, dict) or content.get("version") != _VERSION:
        return {}
    times = content.get("times")
    if not isinstance(times, dict):
        return {}
    return {key: numbers for key, numbers in times.items() if _is_sound(numbers)}


def _is_sound(numbers: object) -> bool:
    return isinstance(numbers, list) and all(
        isinstance(n, int | float) and math.isfinite(n) and n >= 0 for n in numbers
    )
