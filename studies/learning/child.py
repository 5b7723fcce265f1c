"""A run in a process of its own: fresh, on a core of its own, ended when the study is.

`studies.process` does this for programs that are waited for one by one. Here several run at a time,
and one that fails says why in the words of dnic's errors.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dnic.errors import DnicError
from studies.learning.runs import Run
from studies.process import OFFLINE, ROOT, append, portable

_END_S = 15.0
# A run that takes longer hangs.
LONGEST_S = 4 * 3600.0


class Child:
    """A program of the study that works on one run.

    Args:
        program: a module; gets a file for its result, the run, the cache and `arguments`.
        run: what to do.
        cache: of compiled bundles.
        core: that it is to stay on; None: wherever it likes.
    """

    def __init__(
        self, program: str, run: Run, cache: Path, core: int | None, *arguments: str
    ) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="dnic-study-")
        self._output = Path(self._folder.name) / "result.jsonl"
        self._words = Path(self._folder.name) / "words"
        text = json.dumps(run.to_json())
        command = [sys.executable, "-m", program, str(self._output), text, str(cache), *arguments]
        with self._words.open("wb") as words:
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | OFFLINE | {"PYTHONPATH": str(ROOT)},
                stdout=subprocess.DEVNULL,
                stderr=words,
                # Its own group: Ctrl-C is for the study, which decides what ends.
                start_new_session=True,
            )
        if core is not None:
            os.sched_setaffinity(self._process.pid, {core})

    def result(self) -> dict[str, Any]:
        """Waits for the end; what the program had to tell, or `error`."""
        try:
            status = self._process.wait(LONGEST_S)
            if status == 0:
                content: dict[str, Any] = json.loads(portable(self._output.read_text("utf-8")))
                return content
            lines = portable(self._words.read_text("utf-8", errors="replace")).split("\n")
            last = [line for line in lines if line.strip()][-1:]
            return {"error": last[0] if last else f"ended with status {status}"}
        except subprocess.TimeoutExpired:
            return {"error": f"not done after {LONGEST_S:.0f} s"}
        finally:
            self.end()
            self._folder.cleanup()

    def end(self) -> None:
        """Ends the program and what it has started."""
        for how in (signal.SIGTERM, signal.SIGKILL):
            if self._process.poll() is not None:
                return
            os.killpg(self._process.pid, how)
            try:
                self._process.wait(_END_S)
            except subprocess.TimeoutExpired:
                continue


def told(output: str, program: Callable[[], Mapping[str, Any]]) -> None:
    """Writes what a program returns, or the mistake that it could not go on from."""
    try:
        append(output, program())
    except (DnicError, FileNotFoundError) as error:
        append(output, {"error": words_of(error)})


def words_of(error: Exception) -> str:
    """An error in one line: a rank's own last words where one failed."""
    report = str(getattr(error, "report", "")).strip().splitlines()
    problem = error.problem if isinstance(error, DnicError) else str(error)
    return f"{problem}: {report[-1]}" if report else problem
