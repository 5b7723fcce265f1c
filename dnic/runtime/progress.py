"""What a person sees of a run: a live display on a terminal, one plain line per epoch elsewhere.

Only rank 0 shows anything. `DNIC_PROGRESS=none` silences it. `rich` draws; it is imported only
where it is needed, so that the other ranks do not load it.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from dnic.runtime.guard import INSTEAD, told

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress


class Progress:
    """The display of one process; all methods do nothing where it is not shown.

    Args:
        shown: whether this process shows anything.
        epochs: epochs of the whole run.
    """

    def __init__(self, *, shown: bool, epochs: int) -> None:
        self._shown = shown and os.environ.get("DNIC_PROGRESS") != "none"
        self.live = self._shown and sys.stdout.isatty()
        self._epochs = epochs
        self._display: RichProgress | None = None

    def begin(self, title: str, steps: int) -> None:
        """Starts a bar over the steps of an epoch or an evaluation."""
        if not self.live:
            return
        self._display = _display()
        self._display.start()
        self._display.add_task(title, total=steps, figures="")

    def update(self, done: int, figures: Mapping[str, Any]) -> None:
        """Moves the bar and shows figures beside it."""
        if self._display is not None:
            self._display.update(self._display.task_ids[0], completed=done, figures=line(figures))

    def end(self) -> None:
        """Takes the bar away."""
        if self._display is not None:
            self._display.stop()
            self._display = None

    def epoch(self, record: Mapping[str, Any]) -> None:
        """One line about an epoch that is over, after one for each change at an interface."""
        for name, row in record.get("interfaces", {}).items():
            for turn in row.get("turns", ()):
                self.say(told(name, turn))
        self.say(f"epoch {record['epoch']}/{self._epochs}  {line(record)}")

    def say(self, text: str) -> None:
        """Prints a line."""
        if self._shown:
            print(text, flush=True)


def line(figures: Mapping[str, Any]) -> str:
    """Figures of an epoch, or live ones, in one line; what is missing is left out."""
    parts = []
    if (loss := figures.get("train_loss")) is not None:
        parts.append(f"loss {loss:.4f}")
    if (rate := figures.get("samples_per_s")) is not None:
        parts.append(f"{rate:,.0f} samples/s")
    for name, row in figures.get("interfaces", {}).items():
        words = [name]
        if row.get("cosine") is not None:
            words.append(f"cosine {row['cosine']:.2f}")
        if row.get("regime") in INSTEAD:
            words.append(f"({INSTEAD[row['regime']]})")
        if row.get("lateness") is not None:
            words.append(f"late {row['lateness']:.1f}")
        if len(words) > 1:
            parts.append(" ".join(words))
    if (loss := figures.get("test_loss")) is not None:
        parts.append(f"test loss {loss:.4f}")
    if (accuracy := figures.get("test_accuracy")) is not None:
        parts.append(f"test accuracy {100 * accuracy:.2f}%")
    return "  ".join(parts)


def _display() -> RichProgress:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    class SteadyConsole(Console):
        def show_cursor(self, show: bool = True) -> bool:
            """Leaves the cursor alone: a rank that torchrun ends could not bring it back."""
            return False

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TextColumn("{task.fields[figures]}"),
        console=SteadyConsole(),
        transient=True,
        auto_refresh=False,
    )
