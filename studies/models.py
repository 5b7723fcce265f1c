"""How dnic splits real models: every model of the zoo at 2, 4 and 8 stages, proven or not.

    python -m studies.models [--only NAME ...] [--set named|unknown|all] [--stages 2,4,8] [--failed]

Each model runs in a process of its own, for a bounded time and with bounded memory, through the
compiler that `dnic compile` runs. Results go to docs/models.json after every model, so that a study
that was stopped is taken up again with `--failed`, which runs what is not proven yet; the table in
docs/models.md is made from that file.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from dnic import __version__
from studies.compilation import SEED, Compilation
from studies.table import page
from studies.zoo import Case, cases

ROOT = Path(__file__).parent.parent
PACKAGES = ("torch", "transformers", "x-transformers", "pytorchcv")
SECONDS_EACH = 240
MEMORY_BYTES = 8 * 2**30
OFFLINE = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def run(case: Case, counts: Sequence[int]) -> list[Compilation]:
    """Compile a case at each number of stages, in a fresh process.

    A number at which the process dies is a failure; the next process goes on after it.
    """
    found: list[Compilation] = []
    while len(found) < len(counts):
        left = counts[len(found) :]
        done, words = _process(case, left)
        found += done
        if len(done) < len(left):
            found.append(Compilation(case.name, left[len(done)], error=words))
    return found


def _process(case: Case, counts: Sequence[int]) -> tuple[list[Compilation], str]:
    """What a process got done, and its last words."""
    with tempfile.TemporaryDirectory(prefix="dnic-study-") as temporary:
        output = Path(temporary) / "results.jsonl"
        output.touch()
        wanted = ",".join(map(str, counts))
        command = [sys.executable, "-m", "studies.compilation", case.name, wanted, str(output)]
        seconds = SECONDS_EACH * len(counts)
        try:
            ended = subprocess.run(
                command,
                cwd=ROOT,
                env=os.environ | OFFLINE,
                preexec_fn=_bounded,
                timeout=seconds,
                capture_output=True,
                text=True,
                check=False,
            )
            lines = ended.stderr.strip().splitlines()
            words = lines[-1] if lines else f"ended with status {ended.returncode}"
        except subprocess.TimeoutExpired:
            words = f"not done after {seconds} s"
        done = [Compilation(**json.loads(line)) for line in output.read_text().splitlines()]
    return done, words


def _bounded() -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))


def header() -> dict[str, Any]:
    """What the results were made with."""
    return {
        "command": shlex.join(["python", "-m", "studies.models", *sys.argv[1:]]),
        "date": datetime.now(UTC).date().isoformat(),
        "dnic": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
        "seed": SEED,
        "threads": 1,
    }


def is_done(results: Sequence[dict[str, Any]]) -> bool:
    """Whether a case was run and all its results are proven."""
    return len(results) > 0 and all(result["outcome"] == "proven" for result in results)


def write(folder: Path, study: dict[str, Any]) -> None:
    """Both files, each under a temporary name first."""
    for name, text in (
        ("models.json", json.dumps(study, indent=1) + "\n"),
        ("models.md", page(study)),
    ):
        temporary = folder / f".{name}.new"
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(folder / name)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these models only")
    parser.add_argument("--set", default="all", choices=("named", "unknown", "all"), dest="chosen")
    parser.add_argument("--stages", default="2,4,8", help="numbers of stages")
    parser.add_argument("--failed", action="store_true", help="only what is not proven yet")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="folder of the results")
    return parser.parse_args()


def main() -> None:
    """Run the study."""
    asked = arguments()
    counts = [int(count) for count in asked.stages.split(",")]
    file = asked.output / "models.json"
    before = json.loads(file.read_text("utf-8"))["models"] if file.is_file() else {}
    everything = cases()
    results = {case.name: before.get(case.name, {}).get("results", []) for case in everything}
    for case in cases(asked.only, asked.chosen):
        if asked.failed and is_done(results[case.name]):
            continue
        found = run(case, counts)
        results[case.name] = [asdict(result) for result in found]
        models = {
            each.name: {
                "set": each.set,
                "file": f"zoo/{each.file.name}",
                "description": each.description,
                "results": results[each.name],
            }
            for each in everything
            if results[each.name]
        }
        write(asked.output, {**header(), "models": models})
        print(f"{case.name:28}", *(_words(result) for result in found), flush=True)


def _words(result: Compilation) -> str:
    if result.outcome == "proven":
        return f"{result.stages}:{result.max_abs_error:.0e}"
    return f"{result.asked}:{result.outcome}({result.error.splitlines()[0][:120]})"


if __name__ == "__main__":
    main()
