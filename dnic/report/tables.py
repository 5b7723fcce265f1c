"""Tables for people: a plan, the rungs of the proof ladder, training runs side by side.

Every function returns something that a `rich` console prints. Figures carry their units; what is
predicted is called so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from statistics import fmean, stdev
from typing import Any, Literal

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnic.graph import shape
from dnic.partition.plan import Plan, PlannedInterface, PlannedStage
from dnic.report import units
from dnic.report.crossing import head_lines

MOST_MODULES = 4
NONE = "–"


def plan_table(plan: Plan) -> RenderableType:
    """What was decided, why, and what it is predicted to cost."""
    parts: list[RenderableType] = [_summary(plan), _stage_table(plan.stages)]
    if plan.interfaces:
        parts.append(_interface_table(plan.interfaces))
    return Group(*parts)


def verify_table(result: Mapping[str, Any]) -> RenderableType:
    """The rungs of the proof ladder.

    Args:
        result: `{"rungs": {name: {"passed": bool | None, "max_abs_error": float, ...}},
            "passed": bool}`; of a rung, also `tolerance`, `compared`, `detail` and `failures` are
            shown. A rung that is neither passed nor failed could not be tried. `capture` and
            `unwritten` are shown where they are given.
    """
    table = _table("rung", "result", ">max error", ">tolerance", ">compared", "detail")
    failures: list[Text] = []
    for name, rung in result["rungs"].items():
        tried = rung["passed"] is not None
        table.add_row(
            Text(name),
            _verdict(rung["passed"]),
            _scientific(rung.get("max_abs_error")) if tried else NONE,
            _scientific(rung.get("tolerance")) if tried else NONE,
            str(rung.get("compared", NONE)) if tried else NONE,
            Text(str(rung.get("detail", ""))),
        )
        failures += [Text(f"{name}: {failure}", "red") for failure in rung.get("failures", ())]
    verdict = Text.assemble("ladder: ", _verdict(result["passed"]))
    return Group(table, *failures, *_remarks(result), verdict)


def _remarks(result: Mapping[str, Any]) -> Iterator[Text]:
    """What is said below the rungs: the second opinion on the capture, and a proof not kept."""
    capture = result.get("capture")
    if capture:
        opinions = {True: ("agrees", "green"), False: ("disagrees", "yellow")}
        opinion = opinions.get(capture["agrees"], ("not known", "yellow"))
        yield Text.assemble("capture: ", opinion, f" ({capture['detail']})")
    if result.get("unwritten"):
        yield Text(f"not kept: {result['unwritten']}", "yellow")


def comparison_table(rows: Sequence[Mapping[str, Any]]) -> RenderableType:
    """Training runs side by side, one line for each mode.

    Args:
        rows: one for each run: `mode`, `test_accuracy` (0 to 1, or None), `test_loss`,
            `samples_per_s`, `epochs`, `world_size`, `ratio` (samples/s over backprop's, or None).
            Several rows of one mode are several seeds: mean ± sample standard deviation.
    """
    table = _table("mode", ">processes", ">test accuracy", ">test loss", ">samples/s", ">ratio")
    for mode in dict.fromkeys(row["mode"] for row in rows):
        runs = [row for row in rows if row["mode"] == mode]
        table.add_row(
            Text(mode),
            _each(runs, "world_size"),
            _spread(runs, "test_accuracy", lambda x: f"{100 * x:.2f}", " %"),
            _spread(runs, "test_loss", lambda x: f"{x:.3f}"),
            _spread(runs, "samples_per_s", lambda x: f"{x:,.0f}"),
            _spread(runs, "ratio", lambda x: f"{x:.2f}"),
        )
    note = f"epochs: {_each(rows, 'epochs')}; ratio: samples/s to those of backprop"
    if len(rows) > len({row["mode"] for row in rows}):
        note += "\n±: standard deviation over the runs of one mode"
    return Group(table, Text(note, "dim"))


def shortened_modules(modules: Sequence[str]) -> str:
    """Dotted paths in few words: `stem, blocks.0 … blocks.5, head`."""
    parts = list(_without_runs(modules))
    if len(parts) > MOST_MODULES:
        omitted = len(parts) - MOST_MODULES + 1
        parts = [*parts[: MOST_MODULES - 2], f"… {omitted} more …", parts[-1]]
    return ", ".join(parts) or NONE


def _without_runs(modules: Sequence[str]) -> Iterator[str]:
    """Numbered modules of the same list that follow one another as one range."""

    def run(indexed: tuple[int, str]) -> tuple[str, object]:
        parent, _, name = indexed[1].rpartition(".")
        # Consecutive numbers keep the same distance from their position.
        return (parent, int(name) - indexed[0]) if name.isdecimal() else (indexed[1], None)

    for _, members in groupby(enumerate(modules), run):
        paths = [path for _, path in members]
        if len(paths) > 2:
            yield f"{paths[0]} … {paths[-1]}"
        else:
            yield from paths


def _summary(plan: Plan) -> Text:
    model, predicted = plan.model, plan.prediction
    head = f"{units.count(model.parameters)} parameters, batch size {model.batch_size}\n"
    step = f"{units.time(predicted.step_us)} (limited by {predicted.bottleneck})"
    backprop = f"one-device backprop {units.time(predicted.backprop_us)}"
    return Text.assemble(
        (model.name, "bold"),
        f": {head}predicted step ",
        (step, "bold"),
        f",\n{backprop}, speedup ",
        (f"{predicted.speedup:.2f}×", "bold"),
        f" (device profile {predicted.profile})",
    )


def _stage_table(stages: Sequence[PlannedStage]) -> Table:
    table = _table("stage", ">params", ">forward", ">fwd + bwd", ">share", ">memory", "modules")
    for stage in stages:
        table.add_row(
            Text(stage.name),
            units.count(stage.parameters),
            units.flops(stage.forward_flops),
            units.time(stage.forward_us + stage.backward_us),
            units.share(stage.time_share),
            units.size(stage.memory_bytes),
            Text(shortened_modules(stage.modules)),
        )
    return table


def _interface_table(interfaces: Sequence[PlannedInterface]) -> Table:
    table = _table("interface", "", "")
    for interface in interfaces:
        lines = _interface_lines(interface)
        names = [interface.name, f"stage {interface.source} → {interface.to}"]
        for i, (what, text) in enumerate(lines):
            name = Text(names[i] if i < len(names) else "", "" if i else "bold")
            table.add_row(name, what, Text(text), end_section=i == len(lines) - 1)
    return table


def _interface_lines(interface: PlannedInterface) -> list[tuple[str, str]]:
    tensors = [f"{t.name} {shape.text(t.shape)} {t.dtype}" for t in interface.tensors]
    gradient: str = interface.gradient
    if not interface.differentiable:
        gradient = "none passes"
    elif gradient != "exact":
        gradient += f", window {interface.window}"
    if interface.warmup != "exact":
        gradient += f", begins with {interface.warmup}"
    lines = [
        ("tensors", f"{', '.join(tensors)}: {units.size(interface.nbytes)}"),
        ("gradient", gradient),
    ]
    if interface.head:
        forward, train = map(units.time, (interface.head.forward_us, interface.head.train_us))
        costs = f"{forward} to predict, {train} to train"
        lines.append(("head", ", ".join([*head_lines(interface.head, interface.context), costs])))
    if interface.reason:
        lines.append(("reason", interface.reason))
    return lines


def _table(*columns: str) -> Table:
    """An empty table whose last column wraps; `>` before a title aligns its column right."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, collapse_padding=True, header_style="bold")
    for title in columns[:-1]:
        justify: Literal["left", "right"] = "right" if title.startswith(">") else "left"
        table.add_column(title.removeprefix(">"), justify=justify, no_wrap=True)
    last = columns[-1]
    wraps = not last.startswith(">")
    table.add_column(
        last.removeprefix(">"),
        justify="left" if wraps else "right",
        no_wrap=not wraps,
        overflow="fold",
    )
    return table


def _verdict(passed: bool | None) -> Text:
    if passed is None:
        return Text("not tried", "yellow")
    return Text("passed", "green") if passed else Text("FAILED", "bold red")


def _scientific(value: float | None) -> str:
    return NONE if value is None else f"{value:.1e}"


def _each(runs: Sequence[Mapping[str, Any]], key: str) -> str:
    """The value that the runs share, or all that occur."""
    return ", ".join(dict.fromkeys(str(run[key]) for run in runs))


def _spread(
    runs: Sequence[Mapping[str, Any]], key: str, write: Callable[[float], str], unit: str = ""
) -> str:
    """Mean and sample standard deviation of the runs that have a value."""
    values = [float(run[key]) for run in runs if run[key] is not None]
    if not values:
        return NONE
    mean = write(fmean(values))
    unit = unit.replace(" ", units.NO_BREAK_SPACE)
    return f"{mean} ± {write(stdev(values))}{unit}" if len(values) > 1 else mean + unit
