"""What a probe found, as a table: how well each source predicts at each cut."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
    "progress: of a step along the predicted gradient, where one along the true gradient makes 1; "
    "more steps: that a plan counts for the same quality, never: auto does not take it; {by}"
)


def probe_table(probe: Probe) -> RenderableType:
    """The cuts and their sources; figures at every lateness, one beside the other."""
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    latenesses = probe.latenesses
    late = _joined(str(lateness) for lateness in latenesses)
    table.add_column("cut after", overflow="fold")
    table.add_column("cost", justify="right", no_wrap=True)
    table.add_column("source", no_wrap=True)
    for title in ("progress", "more steps"):
        table.add_column(f"{title}\n{late}", justify="right", no_wrap=True)
    for cut in probe.cuts:
        by_source = groupby(probe.of(cut.after), key=lambda row: row.source)
        for place, (source, found) in enumerate(by_source):
            head = ("", "") if place else (cut.after, units.share(cut.share))
            table.add_row(*map(Text, head), Text(source), *_figures(list(found), latenesses))
        table.add_section()
    ticks = ", ".join(map(str, latenesses))
    note = _EXPLAINED.format(by=f"by lateness of true gradients, in updates: {ticks}")
    return Group(Text(_title(probe), "bold"), table, Text(note, "dim"), *_skipped(probe))


def _title(probe: Probe) -> str:
    training = probe.training
    return (
        f"{probe.model.name}: {training.steps} exact steps of {training.batch_size} samples in "
        f"{training.seconds:.0f} s, loss {training.first_loss:.3f} to {training.last_loss:.3f}"
    )


def _figures(rows: list[ProbedRow], latenesses: tuple[int, ...]) -> Iterator[str]:
    by_lateness = {row.lateness: row for row in rows}
    found = [by_lateness.get(lateness) for lateness in latenesses]
    yield _joined(NONE if row is None else _progress(row) for row in found)
    yield _joined(NONE if row is None else _steps(row) for row in found)


def _joined(texts: Iterable[str]) -> str:
    return " ".join(f"{text:>5}" for text in texts)


def _progress(row: ProbedRow) -> str:
    return NONE if row.progress is None else f"{row.progress:.2f}"


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
