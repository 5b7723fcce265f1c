"""The study of learning, part by part; goes on where it was left.

    python -m studies.learning [--part 1,2,3] [--only WORDS] [--jobs 2] [--seeds 0,1,2] [--quick]

Writes docs/learning/runs.jsonl after every run, and docs/learning.md and its pictures at the end.
Learning rates are tuned first, where they are not known. Parts 1 and 2 run several at a time; part
3 (two processes against the clock, links with delay) needs root, two cores, and a machine that does
nothing else. `--estimate` runs each kind for a moment and says how long everything takes.
"""

from __future__ import annotations

import os
import platform
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from dnic import __version__
from dnic.errors import DnicError
from studies.learning import parts
from studies.learning.best import best_source
from studies.learning.estimate import duration, estimated
from studies.learning.jobs import Jobs
from studies.learning.page import page
from studies.learning.parts import FULL, PARTS, QUICK, Sizes, chosen
from studies.learning.plot import pictures
from studies.learning.runs import Run
from studies.learning.store import Store
from studies.learning.tuned import tuned_rate
from studies.process import ROOT


def main(arguments: Sequence[str] | None = None) -> int:
    """Do what is missing and write the files."""
    asked = _asked(arguments)
    console = Console()
    out = asked.out or (ROOT / "build" / "learning" if asked.quick else ROOT / "docs")
    store = Store(out / "learning" / "runs.jsonl")
    sizes = QUICK if asked.quick else FULL
    if asked.seeds:
        sizes = replace(sizes, seeds=tuple(int(seed) for seed in asked.seeds.split(",")))
    wanted, only = asked.part.split(","), asked.only.split(",") if asked.only else []
    failed = False
    try:
        if not asked.page:
            with TemporaryDirectory(prefix="dnic-study-") as cache:
                study = _Study(store, Path(cache), sizes, asked, console)
                failed = not (study.estimate if asked.estimate else study.do)(wanted, only)
    except DnicError as error:
        console.print(str(error), style="red", highlight=False)
        failed = True
    if not asked.estimate:
        store.tidy()
        write(out, store)
    return int(failed)


def write(folder: Path, store: Store) -> None:
    """The page and its pictures, with what there is so far."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "learning.md").write_text(page(store), "utf-8")
    for name, content in pictures(store).items():
        (folder / "learning" / name).write_text(content, "utf-8")


class _Study:
    """Runs of all parts that are wanted, in order: later ones need what earlier ones found."""

    def __init__(
        self, store: Store, cache: Path, sizes: Sizes, asked: Namespace, console: Console
    ) -> None:
        self._store = store
        self._cache = cache
        self._sizes = sizes
        self._source: str | None = asked.source
        self._console = console
        self._jobs = Jobs(store, cache, _stamp(asked), asked.jobs, console)
        self._number = asked.jobs

    def do(self, wanted: Sequence[str], only: Sequence[str]) -> bool:
        """Does everything; whether all of it was."""
        complete = True
        for name, runs in self._lists(wanted):
            listed = chosen(runs(), only)
            self._console.print(f"part {name}: {len(listed)} runs", highlight=False)
            if not self._jobs.do(listed):
                return False
            complete &= all(self._store.done(run.key) for run in listed)
        return complete

    def estimate(self, wanted: Sequence[str], only: Sequence[str]) -> bool:
        """Prints how long everything takes."""
        rate: parts.Rate = lambda family: parts.GRID[1]  # noqa: E731  # any: time is the same
        listed = [run for _, runs in self._lists(wanted, rate) for run in chosen(runs(), only)]
        found = estimated([run for run in listed if run.part != "time"], self._cache, self._console)
        for part, row in found.items():
            hours = duration(row["seconds"] / self._number)
            self._console.print(
                f"{part}: {row['runs']} runs, {hours} with {self._number} at a time"
            )
        total = sum(row["seconds"] for row in found.values()) / self._number
        self._console.print(f"together: {duration(total)}")
        return True

    def _lists(
        self, wanted: Sequence[str], rate: parts.Rate | None = None
    ) -> list[tuple[str, Callable[[], list[Run]]]]:
        """What each part runs, made when it is its turn."""
        known = rate or (lambda family: tuned_rate(self._store, family))
        best = partial(best_source, self._store, self._source)
        made: dict[str, Callable[[], list[Run]]] = {
            "1": lambda: list(parts.paper(self._sizes, known)),
            "2": lambda: list(parts.sources(self._sizes, known)),
            "3": lambda: list(parts.time(self._sizes, known, best)),
        }
        found: list[tuple[str, Callable[[], list[Run]]]] = [
            ("tuning", lambda: list(parts.tuning(self._sizes, wanted)))
        ]
        found += [(name, made[name]) for name in PARTS if name in wanted]
        return found


def _stamp(asked: Namespace) -> dict[str, Any]:
    """What every result is marked with."""
    command = f"python -m studies.learning --part {asked.part}" + (" --quick" * asked.quick)
    versions = {
        "dnic": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    return {"command": command, "versions": versions}


def _asked(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(prog="python -m studies.learning")
    parser.add_argument("--part", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--only", help="runs whose key holds one of these words, by commas")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time; default: %(default)s")
    parser.add_argument("--seeds", help="default: 0,1,2")
    parser.add_argument("--source", help="of part 3; default: the best of part 2")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, into build/learning")
    parser.add_argument("--estimate", action="store_true", help="how long it takes; writes nothing")
    parser.add_argument("--page", action="store_true", help="write the page anew; run nothing")
    parser.add_argument("--out", type=Path, help="default: docs")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
