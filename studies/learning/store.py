"""Results of runs in a file that only grows: a line of JSON for each, so that nothing is lost.

A run that is done is never run again; one that failed is, and its new line takes the place of the
old one. A line that was cut off (the machine went down while it was written) is left out. Several
studies may write to one file at a time. SQLite would do the same, but the file is committed, and
people read its changes.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from typing import Any

Result = Mapping[str, Any]


class Store:
    """The results in one file.

    Args:
        path: the file; made with the first result.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = Lock()
        self._results: dict[str, Result] = {}
        self._read()

    def __iter__(self) -> Iterator[Result]:
        """Every run's latest result, in the order in which runs were first done."""
        return iter(list(self._results.values()))

    def __len__(self) -> int:
        return len(self._results)

    def get(self, key: str) -> Result | None:
        """The latest result of a run."""
        return self._results.get(key)

    def done(self, key: str) -> bool:
        """Whether a run ended well."""
        found = self._results.get(key)
        return found is not None and found.get("error") is None

    def add(self, result: Result) -> None:
        """Writes a result, down to the disk."""
        line = json.dumps(result, allow_nan=False) + "\n"
        with self._alone():
            self._results[result["key"]] = result
            before = "" if _ends_well(self._path) else "\n"
            with self._path.open("a", encoding="utf-8") as file:
                file.write(before + line)
                file.flush()
                os.fsync(file.fileno())

    def tidy(self) -> None:
        """Leaves out of the file what was overtaken or cut off; reads what others have added."""
        if not self._path.is_file():
            return
        with self._alone():
            self._read()
            lines = [json.dumps(result, allow_nan=False) + "\n" for result in self]
            temporary = self._path.with_suffix(".new")
            temporary.write_text("".join(lines), "utf-8")
            temporary.replace(self._path)

    def _read(self) -> None:
        for line in _whole_lines(self._path):
            result = json.loads(line)
            self._results[result["key"]] = result

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Holds the folder, so that no other thread or process writes meanwhile."""
        with self._lock:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            folder = os.open(self._path.parent, os.O_RDONLY)
            try:
                fcntl.flock(folder, fcntl.LOCK_EX)
                yield
            finally:
                os.close(folder)


def _whole_lines(path: Path) -> Iterator[str]:
    """The lines that were written to their end."""
    if not path.is_file():
        return
    for line in path.read_text("utf-8", errors="replace").splitlines():
        try:
            content = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(content, dict) and "key" in content:
            yield line


def _ends_well(path: Path) -> bool:
    if not path.is_file() or not path.stat().st_size:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) == b"\n"
