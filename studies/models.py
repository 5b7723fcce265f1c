"""How dnic splits real models: every model of the zoo at 2, 4 and 8 stages, proven or not.

    python -m studies.models [--only NAME ...] [--set named|unknown|all] [--stages 2,4,8] [--failed]
                             [--jobs N]

Each model runs in a process of its own through the compiler that `dnic compile` runs; some are then
trained, by real processes. Results go to docs/models.json after every model, so that a study that
was stopped is taken up again with `--failed`, which runs what is not proven yet; the tables in
docs/models.md are made from that file.
"""

from __future__ import annotations

import argparse
import json
import platform
import shlex
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dnic import __version__
from studies.compilation import SEED, Compilation
from studies.process import ROOT, results_of
from studies.table import page
from studies.training import TRAINED, Training
from studies.zoo import Case, cases

PACKAGES = ("torch", "transformers", "x-transformers", "pytorchcv")
COMPILING_S = 240
TRAINING_S = 600


def compile_case(case: Case, counts: Sequence[int]) -> list[Compilation]:
    """Compile a case at each number of stages, in a fresh process.

    A number at which the process dies is a failure; the next process goes on after it.
    """
    found: list[Compilation] = []
    while len(found) < len(counts):
        left = counts[len(found) :]
        wanted = ",".join(map(str, left))
        done, words = results_of(
            "studies.compilation", case.name, wanted, seconds=COMPILING_S * len(left)
        )
        found += [Compilation(**result) for result in done]
        if len(done) < len(left):
            found.append(Compilation(case.name, left[len(done)], error=words or "no result"))
    return found


def train_case(case: Case) -> Training:
    """Train a case, in fresh processes."""
    done, words = results_of("studies.training", case.name, seconds=TRAINING_S)
    return Training(**done[0]) if done else Training(case.name, error=words or "no result")


class Study:
    """The results so far, in the folder where they are kept.

    Args:
        folder: of models.json and models.md.
        begin: forget what is there; otherwise results that are not made anew stay.
    """

    def __init__(self, folder: Path, *, begin: bool) -> None:
        self.folder = folder
        self.everything = cases()
        file = folder / "models.json"
        before = {} if begin or not file.is_file() else json.loads(file.read_text("utf-8"))
        command = shlex.join(["python", "-m", "studies.models", *sys.argv[1:]])
        self.commands = [*before.get("commands", []), command]
        self.results: dict[str, list[dict[str, Any]]] = {
            name: model["results"] for name, model in before.get("models", {}).items()
        }
        self.training: dict[str, dict[str, Any]] = before.get("training", {})

    def is_proven(self, case: Case) -> bool:
        """Whether a case was compiled and all of it is proven."""
        found = self.results.get(case.name, [])
        return len(found) > 0 and all(result["outcome"] == "proven" for result in found)

    def is_trained(self, case: Case) -> bool:
        """Whether a case was trained without an error."""
        found = self.training.get(case.name)
        return found is not None and not found["error"]

    def write(self) -> None:
        """Both files, each under a temporary name first."""
        models = {
            case.name: {
                "set": case.set,
                "file": f"zoo/{case.file.name}",
                "description": case.description,
                "results": self.results[case.name],
            }
            for case in self.everything
            if case.name in self.results
        }
        training = {name: self.training[name] for name in TRAINED if name in self.training}
        study = {"commands": self.commands, **header(), "models": models, "training": training}
        for name, text in (
            ("models.json", json.dumps(study, indent=1) + "\n"),
            ("models.md", page(study)),
        ):
            temporary = self.folder / f".{name}.new"
            temporary.write_text(text, encoding="utf-8")
            temporary.replace(self.folder / name)


def header() -> dict[str, Any]:
    """What the results were made with."""
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "dnic": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "seed": SEED,
        "threads": 1,
    }


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these models only")
    parser.add_argument("--set", default="all", choices=("named", "unknown", "all"), dest="chosen")
    parser.add_argument("--stages", default="2,4,8", help="numbers of stages")
    parser.add_argument("--failed", action="store_true", help="only what is not proven yet")
    parser.add_argument("--jobs", type=int, default=1, help="models at the same time")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the results")
    return parser.parse_args()


def main() -> None:
    """Run the study: the named set, the runs that train, the unknown set."""
    asked = arguments()
    study = Study(asked.output, begin=not (asked.only or asked.failed or asked.chosen != "all"))
    chosen = cases(asked.only, asked.chosen)
    named = [case for case in chosen if case.set == "named"]
    compile_all(study, named, asked)
    for case in named:
        if case.name not in TRAINED or (asked.failed and study.is_trained(case)):
            continue
        training = train_case(case)
        study.training[case.name] = asdict(training)
        study.write()
        print(f"{case.name:28} trained: {training.error or training.exact}", flush=True)
    compile_all(study, [case for case in chosen if case.set == "unknown"], asked)
    study.write()


def compile_all(study: Study, chosen: Sequence[Case], asked: argparse.Namespace) -> None:
    """Compile cases, some at the same time; each is written down when it and all before it end."""
    counts = [int(count) for count in asked.stages.split(",")]
    waiting = [case for case in chosen if not (asked.failed and study.is_proven(case))]
    with ThreadPoolExecutor(asked.jobs) as pool:
        found = pool.map(lambda case: compile_case(case, counts), waiting)
        for case, compilations in zip(waiting, found, strict=True):
            study.results[case.name] = [asdict(result) for result in compilations]
            study.write()
            print(f"{case.name:28}", *map(_words, compilations), flush=True)


def _words(result: Compilation) -> str:
    if result.outcome == "proven":
        return f"{result.stages}:{result.max_abs_error:.0e}"
    return f"{result.asked}:{result.outcome}({result.error.splitlines()[0][:120]})"


if __name__ == "__main__":
    main()
