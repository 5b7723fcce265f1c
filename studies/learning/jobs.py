"""Does a list of runs, several at a time, each on a core of its own, and keeps what they find.

Ctrl-C once: what runs is waited for, nothing else is begun. Twice, or SIGTERM: what runs is ended.
Either way everything that was done is in the store.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from queue import SimpleQueue
from types import FrameType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from studies.learning.child import Child
from studies.learning.estimate import Estimate
from studies.learning.runs import Run
from studies.learning.store import Store

_STOPS = (signal.SIGINT, signal.SIGTERM)


def program_of(run: Run) -> str:
    """The module that does a run."""
    return f"studies.learning.{'train' if run.way == 'reference' else 'engine'}"


class Jobs:
    """The runs that are to be done.

    Args:
        store: of results.
        cache: of compiled bundles.
        stamp: what every result is marked with: command and versions.
        number: of runs at a time; those by the engine have the machine for themselves.
        console: for progress.
        program: the module that does a run.
    """

    def __init__(
        self,
        store: Store,
        cache: Path,
        stamp: Mapping[str, Any],
        number: int,
        console: Console,
        program: Callable[[Run], str] = program_of,
    ) -> None:
        self._store = store
        self._cache = cache
        self._stamp = stamp
        self._number = number
        self._console = console
        self._program = program
        self._going: set[Child] = set()
        self._stopped = False

    def do(self, runs: Sequence[Run]) -> bool:
        """Does those that are not in the store.

        Returns:
            Whether the end was reached; False after Ctrl-C.
        """
        missing = [run for run in runs if not self._store.done(run.key)]
        with self._interruptible(), self._progress() as progress:
            task = progress.add_task("", total=len(runs), completed=len(runs) - len(missing))
            for timed in (False, True):
                todo = [run for run in missing if (run.way != "reference") == timed]
                number = 1 if timed else self._number
                for left in self._each(todo, number):
                    words = Estimate(self._store).words(left, number) if left else ""
                    progress.update(task, advance=1, description=words)
        return not self._stopped

    def _each(self, runs: Sequence[Run], number: int) -> Iterator[Sequence[Run]]:
        """Does runs, `number` at a time; after each, those that are left."""
        cores: SimpleQueue[int] = SimpleQueue()
        allowed = sorted(os.sched_getaffinity(0))
        for place in range(number):
            cores.put(allowed[place % len(allowed)])
        waiting, going = list(runs), set[Future[None]]()
        with ThreadPoolExecutor(number) as pool:
            while waiting or going:
                while waiting and len(going) < number and not self._stopped:
                    going.add(pool.submit(self._one, waiting.pop(0), cores))
                if not going:
                    return
                done, going = wait(going, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    yield waiting

    def _one(self, run: Run, cores: SimpleQueue[int]) -> None:
        core = cores.get()
        begin = time.perf_counter()
        # The engine has its processes on cores of their own.
        child = Child(
            self._program(run), run, self._cache, core if run.way == "reference" else None
        )
        self._going.add(child)
        try:
            found = child.result()
        finally:
            self._going.discard(child)
            cores.put(core)
        seconds = round(time.perf_counter() - begin, 1)
        if found.get("error") and self._stopped:
            return  # it was ended; there is nothing to learn from it
        if found.get("error"):
            words = f"[red]{run.key}[/]: {escape(found['error'])}"
            self._console.print(words, highlight=False, soft_wrap=True)
        date = datetime.now(UTC).date().isoformat()
        told = {"key": run.key, "run": run.to_json(), "date": date, "seconds": seconds}
        self._store.add(told | dict(self._stamp) | found)

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        def stop(number: int, frame: FrameType | None) -> None:
            again, self._stopped = self._stopped, True
            if again or number == signal.SIGTERM:
                for child in list(self._going):
                    child.end()
            else:
                self._console.print("no further run is begun; Ctrl-C again ends those that go on")

        before = {number: signal.signal(number, stop) for number in _STOPS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _progress(self) -> Progress:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.description}"))
        return Progress(*columns, console=self._console, transient=True)
