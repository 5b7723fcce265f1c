"""How far predicted step times are from measured ones, and whether the plan's pick is the fastest.

    python -m studies.predicting [--rounds 3] [--only mlp] [--sizes 0,1]

In every round each model is planned and compiled as a user would, nothing known of it but the
machine's calibration, and the bundles are then trained on two processes, one way after the other,
each process pinned to a core of its own with one thread. Writes docs/prediction.json and
docs/prediction.md. Needs a machine that does nothing else.
"""

from __future__ import annotations

import json
import os
import platform
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from shutil import copy
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from dnic import __version__
from dnic.compiler import compile_model
from dnic.cost.machine import cache_file
from dnic.partition.plan import Plan
from dnic.runtime.launch import launch
from dnic.spec import spec_from_mapping
from studies.predicting_page import page
from studies.process import ROOT

FAMILIES = ("mlp", "conv", "transformer")
SIZES = (0, 1, 2, 3)
# The name of each way among a plan's alternatives, and the bundle that runs it.
WAYS = {"one_device": "backprop", "ddp": "ddp", "1f1b": "1f1b", "decoupled": "decoupled"}
OPTIMIZERS = ({"name": "SGD", "lr": 0.01}, {"name": "AdamW", "lr": 1e-4, "fused": True})
SECONDS = 2.0
FEWEST_STEPS, MOST_STEPS = 10, 300


def spec_of(family: str, size: int, schedule: str) -> Any:
    """The spec of one model: two processes of this machine, synthetic heads, else as it comes."""
    return spec_from_mapping(
        {
            "model": {"file": str(ROOT / "studies" / "predicted" / f"{family}.py")},
            "train": {"optimizer": OPTIMIZERS[size % 2], "epochs": 1},
            "devices": {"count": 2},
            "partition": {"schedule": schedule},
            "interfaces": {"default": {"sources": ["synthetic"]}},
        },
        "studies.predicting",
    )


def predicted(plan: Plan) -> dict[str, float]:
    """Predicted microseconds of a step, by way."""
    return {a.name: a.step_us for a in plan.prediction.alternatives if a.name in WAYS}


def bundles(family: str, size: int, folder: Path) -> tuple[dict[str, Path], dict[str, float]]:
    """Compile what runs each way, and what is predicted of it."""
    os.environ["DNIC_SIZE"] = str(size)
    free, _ = compile_model(spec_of(family, size, "decoupled"), folder / "decoupled")
    pipeline, _ = compile_model(spec_of(family, size, "1f1b"), folder / "1f1b")
    prediction = predicted(free.plan) | {"1f1b": predicted(pipeline.plan)["1f1b"]}
    where = {way: folder / ("1f1b" if way == "1f1b" else "decoupled") for way in WAYS}
    return where, prediction


def measure(bundle: Path, mode: str, predicted_us: float) -> dict[str, float]:
    """Median and mean microseconds of a step of one run."""
    steps = min(max(int(SECONDS * 1e6 / predicted_us), FEWEST_STEPS), MOST_STEPS)
    extra = [f"--max-steps={steps}", "--no-evaluate", "--no-checkpoint"]
    run = launch(bundle, mode=mode, epochs=1, pin=True, quiet=True, extra=extra)  # type: ignore[arg-type]
    step_us: dict[str, float] = run.result["step_us"]
    return step_us


def one_round(family: str, size: int) -> dict[str, dict[str, float]]:
    """Predicted and measured microseconds of every way: a fresh plan, then a run of each."""
    known = os.environ.get("XDG_CACHE_HOME")
    with TemporaryDirectory(prefix="dnic-study-") as temporary:
        folder = Path(temporary)
        calibrated = cache_file("cpu", 1)
        (folder / "cache" / "dnic").mkdir(parents=True)
        copy(calibrated, folder / "cache" / "dnic" / calibrated.name)
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        try:
            where, prediction = bundles(family, size, folder)
        finally:
            del os.environ["XDG_CACHE_HOME"]
            if known is not None:
                os.environ["XDG_CACHE_HOME"] = known
        found = {}
        for way, mode in WAYS.items():
            step_us = measure(where[way], mode, prediction[way])
            found[way] = {"predicted_us": prediction[way]} | {
                f"{name}_us": step_us[name] for name in ("median", "mean")
            }
        return found


def study(families: Sequence[str], sizes: Sequence[int], rounds: int) -> Iterator[dict[str, Any]]:
    """One entry for each model: predicted and measured step times of every way, and the pick."""
    for family in families:
        for size in sizes:
            done = [one_round(family, size) for _ in range(rounds)]
            ways = {
                way: {
                    "predicted_us": median(turn[way]["predicted_us"] for turn in done),
                    "measured_us": median(turn[way]["median_us"] for turn in done),
                    "mean_us": median(turn[way]["mean_us"] for turn in done),
                    "rounds": [turn[way] for turn in done],
                }
                for way in WAYS
            }
            entry = {
                "model": family,
                "size": size,
                "optimizer": OPTIMIZERS[size % 2]["name"],
                "pick": min(ways, key=lambda way: ways[way]["predicted_us"]),
                "ways": ways,
            }
            print(line(entry), flush=True)
            yield entry


def line(entry: Mapping[str, Any]) -> str:
    """One model in a line of text."""
    ways = "  ".join(
        f"{way} {w['predicted_us'] / 1000:.1f}/{w['measured_us'] / 1000:.1f} ms "
        f"({w['predicted_us'] / w['measured_us'] - 1:+.0%})"
        for way, w in entry["ways"].items()
    )
    return f"{entry['model']} {entry['size']}: {ways}  pick {entry['pick']}"


def main() -> None:
    """Run the study and write both files."""
    parser = ArgumentParser(prog="python -m studies.predicting")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default=",".join(FAMILIES))
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)))
    parser.add_argument("--dry", action="store_true", help="write nothing")
    asked = parser.parse_args()
    load = os.getloadavg()[0]
    sizes = [int(size) for size in asked.sizes.split(",")]
    entries = earlier()
    for entry in study(asked.only.split(","), sizes, asked.rounds):
        entries[entry["model"], entry["size"]] = entry
        if not asked.dry:
            write(entries, load)


def earlier() -> dict[tuple[str, int], dict[str, Any]]:
    """The models of the last study; those that are measured again are replaced."""
    file = ROOT / "docs" / "prediction.json"
    models = json.loads(file.read_text())["models"] if file.exists() else []
    return {(entry["model"], entry["size"]): entry for entry in models}


def write(entries: Mapping[tuple[str, int], dict[str, Any]], load: float) -> None:
    """Both files, with what there is so far."""
    content = {
        "command": "python -m studies.predicting",
        "date": datetime.now(UTC).date().isoformat(),
        "dnic": __version__,
        "torch": version("torch"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "rounds": sorted({len(e["ways"]["ddp"]["rounds"]) for e in entries.values()}),
        "load_before": round(load, 2),
        "models": [entries[key] for key in sorted(entries)],
    }
    (ROOT / "docs" / "prediction.json").write_text(json.dumps(content, indent=1) + "\n")
    (ROOT / "docs" / "prediction.md").write_text(page(content))


if __name__ == "__main__":
    main()
