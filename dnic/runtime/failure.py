"""How a run ends when something goes wrong: one report, from the rank where it happened.

torch leaves the other ranks of a failed run blocked or with "Connection closed by peer", and
torchrun prints the tracebacks of all. Here the first rank that fails writes `failure.json` into the
run's folder and prints its traceback (a user's mistake: its message); ranks that only lost their
peer say one line and wait a moment for torchrun to end them. A process that is killed from outside
writes nothing: torchrun, or `launch`, names its signal. With NCCL that is also how a process ends
whose peer is gone or silent for `--timeout`: its host has long enqueued the message, and torch's
watchdog thread ends it by SIGABRT; what the peer has reported is what counts.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

from dnic.errors import DnicError, RuntimeFault
from dnic.runtime.place import Place

FAILURE_FILE = "failure.json"
LAUNCHED = "DNIC_LAUNCHED"
INTERRUPTED_STATUS = 130
_GRACE_S = 2.0
# What gloo and NCCL say when another process is gone, or does not answer.
_LOST = ("closed by peer", "connection reset", "broken pipe", "timed out", "nccl error", "refused")


class LinkFault(RuntimeFault):
    """Another rank cannot be reached; the reason is that rank's to tell.

    Args:
        peer: who, for people ("stage 1").
        detail: what torch said.
    """

    def __init__(self, peer: str, detail: str) -> None:
        timed_out = "timed out" in detail.lower() or "timeout" in detail.lower()
        super().__init__(
            f"no answer from {peer} in time"
            if timed_out
            else f"the connection to {peer} is closed",
            where=detail.strip().splitlines()[0] if detail.strip() else None,
            hint="--timeout SECONDS waits longer" if timed_out else None,
        )
        self.timed_out = timed_out


@contextmanager
def lost_peers_named() -> Iterator[None]:
    """Tells the loss of another process apart from a failure here, where torch communicates.

    Raises:
        LinkFault: torch's error was that another process cannot be reached.
        DnicError: torch wrapped one of ours in its own.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, DnicError):
            raise error.__cause__ from None
        text = str(error).lower()
        if error.__cause__ is None and any(word in text for word in _LOST):
            raise LinkFault("another process", str(error)) from error
        raise


class Guard:
    """Context in which a rank runs: reports what escapes from it and ends the process at once.

    A normal exit would wait for gloo's threads and for receives that never come, so a failed rank
    leaves by `os._exit`, after the callbacks in `at_failure` and after flushing what it printed.
    """

    def __init__(self, place: Place) -> None:
        self.place = place
        self.run_dir: Path | None = None
        self.staged = True  # whether every process runs a stage
        self.at_failure: list[Callable[[], None]] = []

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None or (isinstance(error, SystemExit) and error.code in (None, 0)):
            return
        for callback in self.at_failure:
            callback()
        status = self._report(error)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

    def _report(self, error: BaseException) -> int:
        """Tells about the failure; returns the exit status."""
        if isinstance(error, KeyboardInterrupt):
            return INTERRUPTED_STATUS
        if isinstance(error, LinkFault) and not error.timed_out:
            self._say(
                f"rank {self.place.rank}: {error.problem}; the other rank's report says why\n"
            )
            time.sleep(_GRACE_S)
            return 1
        status = exit_status(error)
        if isinstance(error, DnicError):
            text = f"{error}\n"
        elif isinstance(error, SystemExit):
            text = f"{error.code}\n" if isinstance(error.code, str) else ""
        else:
            text = "".join(traceback.format_exception(error))
        if self._claim(error, status):
            self._say(text)
        return status

    def _say(self, text: str) -> None:
        # Under `launch` the report in failure.json is what the user sees, once.
        if os.environ.get(LAUNCHED) != "1":
            sys.stderr.write(text)

    def _claim(self, error: BaseException, status: int) -> bool:
        """Writes `failure.json` unless another rank of this run already has."""
        if self.run_dir is None:
            return self.place.rank == 0
        record = {
            "rank": self.place.rank,
            "stage": self.place.stage if self.staged else None,
            "exit_status": status,
            "exception": type(error).__name__,
            "message": str(error),
            "user_error": isinstance(error, DnicError),
            "traceback": "".join(traceback.format_exception(error)),
            "run_id": self.place.run_id,
        }
        self.run_dir.mkdir(parents=True, exist_ok=True)
        path = self.run_dir / FAILURE_FILE
        own = self.run_dir / f".failure-{self.place.rank}-{os.getpid()}"
        own.write_text(json.dumps(record, indent=1), encoding="utf-8")
        earlier = read_failure(self.run_dir)
        if earlier is not None and earlier["run_id"] != self.place.run_id:
            path.unlink(missing_ok=True)
        try:
            path.hardlink_to(own)
        except FileExistsError:
            return False
        finally:
            own.unlink(missing_ok=True)
        return True


def exit_status(error: BaseException) -> int:
    """The status with which a process that fails so should end."""
    if isinstance(error, DnicError):
        return error.exit_status
    if isinstance(error, SystemExit) and isinstance(error.code, int):
        return error.code & 0xFF
    return 1


def read_failure(run_dir: Path) -> dict[str, Any] | None:
    """The content of a run's `failure.json`, if there is one."""
    try:
        content: dict[str, Any] = json.loads((run_dir / FAILURE_FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return content
