"""Processes that live as long as their input is held open: nothing outlives who started them."""

from __future__ import annotations

import subprocess
from contextlib import suppress

_END_S = 5.0


def let_go(process: subprocess.Popen[bytes]) -> None:
    """Closes a process's input and waits for its end; it is killed where it does not come."""
    if process.stdin is not None:
        with suppress(BrokenPipeError):
            process.stdin.close()
    try:
        process.wait(_END_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
