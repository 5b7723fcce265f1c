"""Work in a forked copy of this process: nothing of it is left behind.

A child has the model without pickling or copying it, trains it without touching the parent's
weights, buffers or random state, and may be bound to a core. `multiprocessing` would do, but on its
way out a child of it flushes standard streams, whose locks a progress bar's thread may have held
when it was forked. Not on systems without fork, nor where CUDA may have been initialised.
"""

from __future__ import annotations

import os
import pickle
import select
import signal
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch

from dnic.runtime.heap import keep_heap

_CHUNK = 1 << 16


class ChildFailed(Exception):
    """A child raised, died or took too long; internal, callers go on without its result."""


def can_fork() -> bool:
    """Whether work can be done in a child."""
    return hasattr(os, "fork") and not torch.cuda.is_available()


def cores() -> list[int]:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def in_children(
    work: Callable[[], Any], on: Sequence[int | None], timeout_s: float = 120.0
) -> list[Any]:
    """Run `work` at the same time in one child for each entry of `on`.

    Args:
        work: what each child does; what it returns is pickled.
        on: the core of each child; None leaves it free.
        timeout_s: for all of them together.

    Returns:
        What each returned.

    Raises:
        ChildFailed: one raised, died or took too long; all are ended.
    """
    started = [_start(work, core) for core in on]
    deadline = time.monotonic() + timeout_s
    try:
        return [_result(reader, deadline) for _, reader in started]
    finally:
        for pid, reader in started:
            os.close(reader)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(ChildProcessError):
                os.waitpid(pid, 0)


def in_child(work: Callable[[], Any], core: int | None = None, timeout_s: float = 120.0) -> Any:
    """Run `work` in one child; see `in_children`."""
    return in_children(work, [core], timeout_s)[0]


def _start(work: Callable[[], Any], core: int | None) -> tuple[int, int]:
    """Process id, and where its result can be read."""
    reader, writer = os.pipe()
    with warnings.catch_warnings():
        # Newer Pythons warn of other threads; they hold no lock that `work` takes.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        os.close(writer)
        return pid, reader
    status = 1
    try:
        os.close(reader)
        # The threads of the parent's pool are not here: whoever waits for them waits forever.
        torch.set_num_threads(1)
        keep_heap()  # As training does.
        if core is not None:
            with suppress(OSError, AttributeError):
                os.sched_setaffinity(0, {core})
        with open(writer, "wb") as pipe:  # noqa: PTH123  # a descriptor, not a path
            try:
                pickle.dump((True, work()), pipe)
                status = 0
            except BaseException as error:  # noqa: BLE001  # the parent is told
                pickle.dump((False, f"{type(error).__name__}: {error}"), pipe)
    finally:
        os._exit(status)


def _result(reader: int, deadline: float) -> Any:
    chunks = []
    while True:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([reader], [], [], max(left, 0.0))
        if not ready:
            raise ChildFailed("it took too long")
        chunk = os.read(reader, _CHUNK)
        if not chunk:
            break
        chunks.append(chunk)
    try:
        good, value = pickle.loads(b"".join(chunks))
    except (EOFError, pickle.UnpicklingError) as error:
        raise ChildFailed("it died") from error
    if not good:
        raise ChildFailed(value)
    return value
