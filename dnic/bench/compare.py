"""Train a bundle in several ways and put the figures side by side.

Every run starts from the same initial weights and sees the same batches in the same order; runs of
one seed follow one another (`backprop`, `decoupled`, ...), so that a machine that slows down slows
all of them. Accuracy and samples/s come from the same runs. What is not done here is a throughput
study over links and schedules.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dnic.errors import SpecError
from dnic.runtime.launch import launch
from dnic.runtime.options import PIPELINES
from dnic.runtime.plan import Mode

MODES: tuple[Mode, ...] = ("decoupled", "stale", "exact", *PIPELINES, "ddp", "backprop")


def parse_modes(text: str) -> tuple[Mode, ...]:
    """`decoupled,backprop` as modes.

    Raises:
        SpecError: one of them does not exist.
    """
    words = [word.strip() for word in text.split(",")]
    for word in words:
        if word not in MODES:
            raise SpecError(
                f"there is no mode {word!r}", where="--modes", expected=", ".join(MODES)
            )
    return tuple(mode for word in words for mode in MODES if mode == word)


def parse_seeds(text: str | None) -> tuple[int | None, ...]:
    """`0,1,2` as seeds; None, the plan's own, when nothing is asked.

    Raises:
        SpecError: one of them is not a whole number.
    """
    if text is None:
        return (None,)
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise SpecError(f"{text!r} is no list of seeds", where="--seeds", expected="such as 0,1,2")
    return tuple(int(word) for word in words)


def compare(
    folder: Path,
    *,
    modes: Sequence[Mode] = ("decoupled", "backprop"),
    seeds: Sequence[int | None] = (None,),
    epochs: int | None = None,
    pin: bool = False,
    quiet: bool = False,
    done: Callable[[dict[str, Any]], None] = lambda row: None,
) -> list[dict[str, Any]]:
    """Train the bundle once for each mode and seed.

    Args:
        folder: the bundle.
        modes: of `MODES`.
        seeds: of data order, dropout and heads; None is the plan's. Initial weights are the
            bundle's own.
        epochs: None is the plan's.
        pin: pin each process to a core of its own, one thread each.
        quiet: show no progress.
        done: told of every finished run.

    Returns:
        A result for each run, as `result.json` has it, and `ratio`: samples/s over those of
        backprop with the same seed (None without such a run).
    """
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        of_seed: list[dict[str, Any]] = []
        for mode in modes:
            out = folder / "runs" / (mode if seed is None else f"{mode}-seed{seed}")
            result = launch(
                folder, epochs=epochs, mode=mode, out=out, seed=seed, pin=pin, quiet=quiet
            ).result
            of_seed.append(dict(result))
            done(of_seed[-1])
        base = next((r["samples_per_s"] for r in of_seed if r["mode"] == "backprop"), None)
        for row in of_seed:
            row["ratio"] = row["samples_per_s"] / base if base else None
        rows += of_seed
    return rows
