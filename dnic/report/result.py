"""The last lines of a training run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.text import Text


def result_lines(result: Mapping[str, Any], folder: str | Path) -> Text:
    """What a run reached, how fast, and where its files lie.

    Args:
        result: content of `result.json`: `mode`, `epochs`, `world_size`, and where known
            `samples_per_s`, `test_loss`, `test_accuracy` (0 to 1).
        folder: where the run wrote.
    """
    reached = []
    if (accuracy := result.get("test_accuracy")) is not None:
        reached.append(f"test accuracy {100 * accuracy:.2f}\N{NO-BREAK SPACE}%")
    if (loss := result.get("test_loss")) is not None:
        reached.append(f"test loss {loss:.4f}")
    if (speed := result.get("samples_per_s")) is not None:
        reached.append(f"{speed:,.0f} samples/s")
    epochs = _plural(result["epochs"], "epoch")
    processes = _plural(result["world_size"], "process", "processes")
    return Text.assemble(
        (result["mode"], "bold"),
        f", {epochs}, {processes}: ",
        (", ".join(reached) or "no test data", "bold"),
        f"\nrun: {folder}",
    )


def _plural(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"
