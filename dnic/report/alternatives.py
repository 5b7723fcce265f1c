"""The table of every way to train a model, fastest first, and the verdict below it."""

from __future__ import annotations

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnic.partition.plan import Plan, PlannedAlternative, Prediction
from dnic.partition.verdict import TITLES
from dnic.report import units

NONE = "–"


def verdict_table(plan: Plan) -> RenderableType:
    """Predicted speed, memory and staleness of every way to train, and whether to decouple.

    Ways that a bundle cannot run are dim; what does not fit says why. Empty for plans that were
    made without looking at alternatives.
    """
    predicted = plan.prediction
    if predicted.verdict is None:
        return Text("")
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    table.add_column("way to train", overflow="fold")
    for title in ("samples/s", "ratio", "devices", "memory", "idle", "late"):
        table.add_column(title, justify="right", no_wrap=True)
    base = next((a.samples_per_s for a in predicted.alternatives if a.name == "one_device"), 0.0)
    for alternative in predicted.alternatives:
        table.add_row(*_row(alternative, base), style="" if _runs(alternative) else "dim")
    verdict = predicted.verdict
    word = Text("cool: ", "bold green") if verdict.decouple else Text("meh: ", "bold yellow")
    unfit = [
        Text(f"{_title(a)} does not fit: {a.unfit}", "dim")
        for a in predicted.alternatives
        if a.unfit
    ]
    if not all(a.proven for a in predicted.alternatives):
        unfit.append(Text("not every order of the devices was searched: too many sorts", "dim"))
    basis = Text(f"runs as {schedule_text(plan)}; {_basis(predicted)}", "dim")
    return Group(table, *unfit, Text.assemble(word, verdict.reason), basis)


def schedule_text(plan: Plan) -> str:
    """`1f1b on 2 processes, 8 microbatches`."""
    schedule = plan.schedule
    stages = len(plan.stages) * schedule.replicas
    count = 1 if schedule.mode == "backprop" else schedule.processes or stages
    text = f"{schedule.mode} on {count} process{'es' if count > 1 else ''}"
    if schedule.microbatches > 1:
        text += f", {schedule.microbatches} microbatches"
    if schedule.replicas > 1:
        text += f", {schedule.replicas} replicas of each stage"
        text += ", in parts" if schedule.shard else ""
    return text


def _runs(alternative: PlannedAlternative) -> bool:
    return alternative.mode is not None and not alternative.unfit


def _title(a: PlannedAlternative) -> str:
    title: str = TITLES.get(a.name, a.name)  # type: ignore[call-overload]  # later versions' names
    if a.microbatches > 1:
        title += f", {a.microbatches} microbatches"
    if a.windows:
        title += f", window {max(a.windows)}"
    if a.mode is None and not a.unfit:
        title += " (predicted only)"
    return title


def _row(a: PlannedAlternative, base: float) -> tuple[Text | str, ...]:
    late = max(a.staleness, default=0)
    return (
        Text(_title(a)),
        f"{a.samples_per_s:,.4g}" if a.samples_per_s < 1000 else f"{a.samples_per_s:,.0f}",
        f"{a.samples_per_s / base:.2f}" if base else NONE,
        str(a.devices),
        units.size(a.peak_memory_bytes),
        f"{a.bubble:.0%}",
        str(late) if late else NONE,
    )


def _basis(predicted: Prediction) -> str:
    if predicted.costs == "measured":
        return "predicted from times measured on this machine"
    return f"predicted from the figures of {predicted.profile}"
