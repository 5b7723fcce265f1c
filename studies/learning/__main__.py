"""The study of learning, part by part; goes on where it was left.

    python -m studies.learning [--part 1,2,3] [--only WORDS] [--jobs 2] [--seeds 0,1,2] [--quick]

Writes docs/learning/runs.jsonl after every run, and docs/learning.md and its pictures at the end.
Learning rates are tuned first, where they are not known. Runs by the reference go several at a
time. Those of part 3 by the engine (two processes, links with delay) need root, two cores, and a
machine that does nothing else; `--only budget` leaves them out. `--estimate` runs each kind for a
moment and says how long everything takes.
"""

from __future__ import annotations

import os
import platform
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from math import isfinite, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.console import Console

from dnic import __version__
from studies.learning import parts, racing
from studies.learning.best import best_head
from studies.learning.estimate import duration, estimated
from studies.learning.figures import named
from studies.learning.jobs import Jobs, program_of
from studies.learning.page import page
from studies.learning.parts import FULL, PARTS, QUICK, Sizes, chosen
from studies.learning.plot import pictures
from studies.learning.runs import Run
from studies.learning.store import Store
from studies.learning.tuned import tuned_rate
from studies.process import ROOT


def main(arguments: Sequence[str] | None = None, program: Callable[[Run], str] = program_of) -> int:
    """Do what is missing and write the files; the exit status is 1 where something is left."""
    asked = _asked(arguments)
    out = asked.out or (ROOT / "build" / "learning" if asked.quick else ROOT / "docs")
    store = Store(out / "learning" / "runs.jsonl")
    sizes = QUICK if asked.quick else FULL
    if asked.seeds:
        sizes = replace(sizes, seeds=tuple(int(seed) for seed in asked.seeds.split(",")))
    failed = False
    if not asked.page:
        with TemporaryDirectory(prefix="dnic-study-") as cache:
            study = _Study(store, Path(cache), sizes, asked, program)
            failed = not (study.estimate() if asked.estimate else study.do())
    if not asked.estimate:
        if not asked.page:
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
        self,
        store: Store,
        cache: Path,
        sizes: Sizes,
        asked: Namespace,
        program: Callable[[Run], str],
    ) -> None:
        self._store = store
        self._cache = cache
        self._sizes = sizes
        self._source: str | None = asked.source
        self._only = asked.only.split(",") if asked.only else []
        self._wanted = [part for part in PARTS if part in asked.part.split(",")]
        self._number = asked.jobs
        self._console = Console()
        self._jobs = Jobs(store, cache, _stamp(asked), asked.jobs, self._console, program)

    def do(self) -> bool:
        """Does everything; whether all of it was."""
        tuning = list(parts.tuning(self._sizes, self._families()))
        complete = self._do("tuning", tuning)
        for part in self._wanted:
            if complete is None:
                return False
            listed = self._listed(part, self._rate, cache(self._best))
            ready = [run for run in listed if isfinite(run.lr)]
            if len(ready) < len(listed):
                left = len(listed) - len(ready)
                self._say(f"{left} runs are left out: there is no learning rate for them")
            done = self._do(f"part {part}", ready)
            complete = None if done is None else complete and done and ready == listed
        return bool(complete)

    def estimate(self) -> bool:
        """Prints how long everything takes."""
        runs = [run for part in self._wanted for run in self._stand_ins(part)]
        runs = [*parts.tuning(self._sizes, self._families()), *runs]
        found = estimated(runs, self._cache, self._console)
        for part, (count, seconds) in found.items():
            words = duration(seconds / self._number)
            self._say(f"{part}: {count} runs, {words} with {self._number} at a time")
        total = sum(seconds for _, seconds in found.values())
        self._say(f"together: {duration(total / self._number)}")
        return True

    def _do(self, name: str, runs: Sequence[Run]) -> bool | None:
        """Does some runs; whether all of them ended well, None after Ctrl-C."""
        self._say(f"{name}: {len(runs)} runs")
        if not self._jobs.do(runs):
            return None
        return all(self._store.done(run.key) for run in runs)

    def _families(self) -> list[parts.Family]:
        """Those that the runs that are wanted need a learning rate for."""
        runs = [run for part in self._wanted for run in self._stand_ins(part)]
        return list(dict.fromkeys(parts.tuned_as(run, self._sizes) for run in runs))

    def _stand_ins(self, part: str) -> list[Run]:
        """The runs of a part as far as they are known before anything is."""
        return self._listed(part, lambda family: parts.GRID[0], lambda family, lateness: "cdni")

    def _listed(self, part: str, rate: parts.Rate, best: racing.Best) -> list[Run]:
        made = {
            "1": lambda: [*parts.paper(self._sizes, rate), *parts.rates(self._sizes)],
            "2": lambda: [*parts.sources(self._sizes, rate), *parts.cold(self._sizes, rate)],
            "3": lambda: [
                *racing.speeds(self._sizes, rate, best),
                *racing.budgets(self._sizes, rate, best),
            ],
        }
        return chosen(list(made[part]()), self._only)

    def _rate(self, family: parts.Family) -> float:
        found = tuned_rate(self._store, family)
        return nan if found is None else found

    def _best(self, family: parts.Family, lateness: int | None) -> str | None:
        found = self._source or best_head(self._store, family, lateness)
        if found is None:
            when = "without true gradients" if lateness is None else f"late {lateness}"
            words = f"{when}: part 2 has not been run, so no head is timed"
            self._say(f"{named(family)}, {words} (or --source NAME)")
        return found

    def _say(self, words: str) -> None:
        self._console.print(words, highlight=False, soft_wrap=True)


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
