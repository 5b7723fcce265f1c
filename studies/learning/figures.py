"""Figures and tables of the page, as Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from studies.learning.parts import Family
from studies.learning.quality import Done, Figure
from studies.learning.runs import Run
from studies.learning.sources import SOURCES

NONE = "–"
DATA = {"mnist": "MNIST", "fashion": "Fashion-MNIST", "text": "Python source"}
MODELS = {
    "connected": "fully connected, {layers} layers",
    "convolutional": "convolutional, {layers} layers",
    "residual": "residual, {layers} blocks",
    "characters": "character transformer, {layers} blocks",
}


def family_of(run: Run) -> Family:
    """The family of a run."""
    return run.data, run.model, run.layers, run.width


def named(family: Family) -> str:
    """`Fashion-MNIST, fully connected, 6 layers`."""
    data, model, layers, width = family
    wide = f" of {width}" if model == "connected" and width != 256 else ""
    words = MODELS[model].format(layers=layers)
    return words.capitalize() if model == "characters" else f"{DATA[data]}, {words}{wide}"


def source_title(run: Run) -> str:
    """A source, and whether it had a guard."""
    return SOURCES[run.source].title + (", guarded" if run.guard else "")


def quality_words(found: Figure | None, family: Family) -> str:
    """`98.31 ± 0.05`; of one seed without a spread; with the number of seeds that were lost."""
    if found is None:
        return NONE
    digits = 3 if family[1] == "characters" else 2
    words = f"{found.mean:.{digits}f}"
    if found.spread is not None:
        words += f" ± {found.spread:.{digits}f}"
    return f"{words} ({found.lost} lost)" if found.lost else words


def error_words(found: Figure | None) -> str:
    """An accuracy as the error in percent, as the paper has it."""
    if found is None:
        return NONE
    words = f"{100 - found.mean:.2f}"
    if found.spread is not None:
        words += f" ± {found.spread:.2f}"
    return f"{words} ({found.lost} lost)" if found.lost else words


def short_words(short: float | None, family: Family) -> str:
    """How much worse than backprop: `0.12 points`, `1.3%`; better with a minus."""
    if short is None:
        return NONE
    return f"{100 * short:.1f}%" if family[1] == "characters" else f"{short:.2f} points"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A table of Markdown."""
    yield "| " + " | ".join(head) + " |"
    yield "|" + "---|" * len(head)
    for row in rows:
        yield "| " + " | ".join(row) + " |"


def families_in(runs: Sequence[Done], **wanted: object) -> list[Family]:
    """The families of some runs, in the order in which they were done."""
    return list(
        dict.fromkeys(
            family_of(found.run)
            for found in runs
            if all(getattr(found.run, name) == value for name, value in wanted.items())
        )
    )
