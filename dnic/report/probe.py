"""What a probe found, as a table: how well each source predicts at each cut."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import inf

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnic.partition.predictability import OWN_OBJECTIVE, further_steps
from dnic.partition.probed import Probe, ProbedRow
from dnic.report import units

NONE = "–"
_EXPLAINED = (
    "explained: share of the gradient's squares, 1 is all, 0 what the zero gradient explains; "
    "progress: of a step along it, a step along the true gradient makes 1; steps: how many more a "
    "plan counts, never: no interface gets it by itself; by lateness: updates until the true "
    "gradient is there"
)


def probe_table(probe: Probe) -> RenderableType:
    """The cuts and their sources, with a column of figures for each lateness."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    table.add_column("cut after", overflow="fold")
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    latenesses = probe.latenesses
    for title in ("explained", "progress", "steps"):
        for lateness in latenesses:
            mark = f"{title}\n{lateness}" if lateness == latenesses[0] else f"\n{lateness}"
            table.add_column(mark, justify="right", no_wrap=True)
    table.add_column("a step", justify="right", no_wrap=True)
    for cut in probe.cuts:
        by_source = groupby(probe.of(cut.after), key=lambda row: row.source)
        for place, (source, found) in enumerate(by_source):
            head = ("", "") if place else (cut.after, units.share(cut.share))
            table.add_row(*map(Text, head), Text(source), *_figures(list(found), latenesses))
        table.add_section()
    return Group(Text(_title(probe), "bold"), table, Text(_EXPLAINED, "dim"), *_skipped(probe))


def _title(probe: Probe) -> str:
    training = probe.training
    return (
        f"{probe.model.name}: {training.steps} exact steps of {training.batch_size} samples in "
        f"{training.seconds:.0f} s, loss {training.first_loss:.3f} to {training.last_loss:.3f}"
    )


def _figures(rows: list[ProbedRow], latenesses: tuple[int, ...]) -> Iterator[str]:
    by_lateness = {row.lateness: row for row in rows}
    found = [by_lateness.get(lateness) for lateness in latenesses]
    for row in found:
        yield NONE if row is None else _number(row.explained)
    for row in found:
        yield NONE if row is None or row.progress is None else _number(row.progress)
    for row in found:
        yield NONE if row is None else _steps(row)
    spent_us = [row.predict_us + row.learn_us for row in rows]
    yield units.time(max(spent_us)) if any(spent_us) else NONE


def _number(value: float) -> str:
    return f"{value:.2f}" if value > -9.995 else f"{value:.0f}"


def _steps(row: ProbedRow) -> str:
    if row.source in OWN_OBJECTIVE:
        return NONE
    hopeless = row.compared == "tensors" and row.explained <= 0
    steps = inf if hopeless else further_steps(row)
    if steps is None:
        return NONE
    return "never" if steps == inf else f"+{steps:.0%}"


def _skipped(probe: Probe) -> Iterator[Text]:
    """One line for each reason, with the cuts that it holds for."""
    ordered = sorted(probe.skipped, key=lambda skip: (skip.source, skip.reason))
    for (source, reason), found in groupby(ordered, key=lambda skip: (skip.source, skip.reason)):
        cuts = [skip.cut for skip in found]
        more = f" and {len(cuts) - 1} more" if len(cuts) > 1 else ""
        yield Text(f"not probed: {source} {cuts[0]}{more}: {reason}".replace("  ", " "), "yellow")
