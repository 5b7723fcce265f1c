"""How long dnic takes for large models, and how that grows with their layers.

    python -m studies.scaling

Each model is compiled in a process of its own, on the meta device, into four stages. Writes
docs/scaling.json and docs/scaling.md.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from dnic import __version__
from studies.process import ROOT, results_of
from studies.sized_compilation import STAGES, SizedCompilation

PASSES = ("load", "capture", "graph", "cost", "cut", "recapture", "plan", "emit", "prove", "write")
LARGE = (("gpt2_xl", 48), ("llama", 32))
GROWTH = (12, 24, 48, 96)
SECONDS = 600
DEMANDED_S, DEMANDED_BYTES = 60, 4 * 2**30
GIB = 2**30


def measured(model: str, layers: int) -> SizedCompilation:
    """Compile one model in a fresh process.

    Raises:
        RuntimeError: it failed; with its last words.
    """
    done, words = results_of("studies.sized_compilation", model, str(layers), seconds=SECONDS)
    if not done:
        raise RuntimeError(f"{model} with {layers} layers: {words}")
    result = SizedCompilation(**done[0])
    print(
        f"{model} {layers}: {result.total_s:.1f} s, {result.peak_bytes / GIB:.2f} GiB", flush=True
    )
    return result


def page(large: Sequence[SizedCompilation], growth: Sequence[SizedCompilation], about: str) -> str:
    """The text of docs/scaling.md."""
    head = [
        "# Large models",
        "",
        about,
        "",
        f"Each is built, captured, planned, written and verified on the meta device, in {STAGES} "
        "stages, without weights: rung 1 of the proof compares shapes, not values. One process "
        "each, one thread. Wanted: at most "
        f"{DEMANDED_S} s and {DEMANDED_BYTES // GIB} GiB for the two first, and time that grows "
        "linearly with the layers. Seconds of a processor are what the process itself used; the "
        "others are by the clock, and other programs lengthen them.",
        "",
        "| model | parameters | layers | operations | lines of stages.py "
        "| seconds | of a processor | memory |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(result) for result in large),
        "",
        "## Growth: a Llama of width 4096",
        "",
        "| layers | operations | seconds | of a processor | for each layer | for each layer more "
        "| memory |",
        "|---|---|---|---|---|---|---|",
        *_growth_rows(growth),
        "",
        "## Seconds of each pass",
        "",
        "| model | layers | " + " | ".join(PASSES) + " |",
        "|---|---|" + "---|" * len(PASSES),
        *(_pass_row(result) for result in (*large, *growth)),
        "",
    ]
    return "\n".join(head)


def _row(result: SizedCompilation) -> str:
    return (
        f"| {result.model} | {result.parameters / 1e9:.2f} billion | {result.layers} "
        f"| {result.operations:,} | {result.lines:,} | {result.total_s:.1f} | {result.cpu_s:.1f} "
        f"| {result.peak_bytes / GIB:.2f} GiB |"
    )


def _growth_rows(growth: Sequence[SizedCompilation]) -> list[str]:
    rows = []
    before: SizedCompilation | None = None
    for result in growth:
        more = "-"
        if before is not None:
            slope = (result.cpu_s - before.cpu_s) / (result.layers - before.layers)
            more = f"{slope:.3f}"
        rows.append(
            f"| {result.layers} | {result.operations:,} | {result.total_s:.1f} "
            f"| {result.cpu_s:.1f} | {result.cpu_s / result.layers:.3f} | {more} "
            f"| {result.peak_bytes / GIB:.2f} GiB |"
        )
        before = result
    return rows


def _pass_row(result: SizedCompilation) -> str:
    seconds = " | ".join(f"{result.pass_s.get(name, 0.0):.2f}" for name in PASSES)
    return f"| {result.model} | {result.layers} | {seconds} |"


def write(name: str, text: str) -> None:
    """Write a file in docs/, whole or not at all."""
    target = ROOT / "docs" / name
    temporary = target.with_name(f".{name}.new")
    temporary.write_text(text, "utf-8")
    temporary.replace(target)


def main() -> None:
    """Measure, and write both files."""
    load = os.getloadavg()[0]
    large = [measured(model, layers) for model, layers in LARGE]
    growth = [measured("llama", layers) for layers in GROWTH]
    now = datetime.now(UTC)
    content = {
        "command": "python -m studies.scaling",
        "date": now.isoformat(timespec="seconds"),
        "dnic": __version__,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "large": [vars(result) for result in large],
        "growth": [vars(result) for result in growth],
    }
    about = (
        f"`python -m studies.scaling`, {now:%Y-%m-%d}: dnic {__version__}, torch "
        f"{version('torch')}, transformers {version('transformers')}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f} before it began."
    )
    write("scaling.json", json.dumps(content, indent=2) + "\n")
    write("scaling.md", page(large, growth, about))
    print(f"wrote {Path('docs/scaling.md')}")


if __name__ == "__main__":
    main()
