"""What a bench showed, as tables: how fast each way is, and where the time of its steps goes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from dnic.report import units

NONE = "–"
# A column for each, and the parts of the stopwatch that it sums up; what is left is `other`.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "forward": ("forward",),
    "head": ("head",),
    "backward": ("backward",),
    "update": ("update",),
    "learn": ("learn",),
    "send": ("send", "send back"),
    "wait": ("wait",),
}
_EXPLAINED = (
    "samples/s: batch over mean step, median of the rounds; x core: over backprop on one core; "
    "ceiling: over every stage alone at once, divided evenly; sent: bytes of all processes in a "
    "step{planned}; MiB: most memory of each rank, libraries included"
)
_PARTS_EXPLAINED = (
    "milliseconds of a mean step; learn: training heads; other: data, receiving, and torch's "
    "schedules (gpipe, 1f1b, interleaved, zerobubble), of which the parts are not known"
)


def bench_table(result: Mapping[str, Any]) -> RenderableType:
    """The tables of a bench.

    Args:
        result: what `dnic.bench.rounds.bench` returned.
    """
    variants = result["variants"]
    planned = any(not v["wire_bytes_counted"] and v["wire_bytes_per_step"] for v in variants)
    note = _EXPLAINED.format(planned="; ~: by the plan" if planned else "")
    return Group(
        Text(_title(result), "bold"),
        _speeds(variants),
        Text(note, "dim"),
        _parts(variants),
        Text(_PARTS_EXPLAINED, "dim"),
        *(Text(line, "dim") for line in _remarks(result)),
        *(Text(f"left out: {o['name']}: {o['reason']}", "yellow") for o in result["left_out"]),
    )


def _title(result: Mapping[str, Any]) -> str:
    link = "loopback" if result["link"] is None else result["link"]["text"]
    rounds = result["rounds"]
    return (
        f"{result['model']}: {result['stages']} stages on {result['cores']} cores, batch "
        f"{result['batch_size']}, {link}, {rounds} round{'s' if rounds > 1 else ''}"
    )


def _speeds(variants: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("way", "samples/s", "min", "max", "x core", "ceiling", "sent", "MiB")
    for v in variants:
        sent = units.size(v["wire_bytes_per_step"]) if v["wire_bytes_per_step"] else NONE
        table.add_row(
            Text(v["name"], "bold" if v["name"] == "decoupled" else ""),
            _speed(v["samples_per_s"]),
            _speed(v["min_samples_per_s"]),
            _speed(v["max_samples_per_s"]),
            _ratio(v["ratio_to_one_core"]),
            _ratio(v["ratio_to_ceiling"]),
            sent if v["wire_bytes_counted"] or sent == NONE else f"~{sent}",
            " ".join(f"{nbytes / 2**20:.0f}" for nbytes in v["memory_bytes"]),
        )
    return table


def _parts(variants: Sequence[Mapping[str, Any]]) -> Table:
    table = _table("way, rank", "step", *COLUMNS, "other")
    for v in variants:
        for rank, parts in enumerate(v["parts_us"]):
            sums = [sum(parts.get(part, 0.0) for part in names) for names in COLUMNS.values()]
            other = sum(parts.values()) - sum(sums)
            table.add_row(
                f"{v['name']} {rank}" if v["processes"] > 1 else v["name"],
                *(_ms(us) for us in (v["step_us"][rank], *sums, other)),
            )
    return table


def _remarks(result: Mapping[str, Any]) -> Iterator[str]:
    most = max((v["processes"] for v in result["variants"]), default=1)
    if most > result["cores"]:
        yield f"{most} ranks share {result['cores']} cores: no rank has one of its own"
    for v in result["variants"]:
        if "slowest_stage_samples_per_s" in v:
            slowest = v["slowest_stage_samples_per_s"]
            yield f"the slowest stage alone: {_speed(slowest)} samples/s"
        if any(v["in_flight_bytes"] or ()):
            sizes = ", ".join(units.size(nbytes) for nbytes in v["in_flight_bytes"])
            yield f"{v['name']}: messages under way take at most {sizes} (by rank)"
    once = [v["name"] for v in result["variants"] if len(v["rounds"]) < result["rounds"]]
    if once:
        yield (
            f"one round of {', '.join(once)}: more than a tenth slower there than with their best "
            "number of microbatches"
        )
    relay = result["relay"]
    if relay is not None:
        share = relay["cpu_s"] / relay["seconds"]
        yield (
            f"the relay moved {units.size(relay['bytes'])} in {relay['packets']} packets and was "
            f"busy for {units.share(share)} of the time, on the ranks' cores"
        )


def _table(*columns: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        header_style="bold",
    )
    for place, title in enumerate(columns):
        table.add_column(title, justify="right" if place else "left", no_wrap=True)
    return table


def _speed(samples_per_s: float) -> str:
    return f"{samples_per_s:,.0f}" if samples_per_s >= 100 else f"{samples_per_s:.1f}"


def _ratio(value: float | None) -> str:
    return NONE if value is None else f"{value:.2f}"


def _ms(us: float) -> str:
    ms = us / 1000
    if ms < 0.005:
        return NONE
    return f"{ms:.2f}" if ms < 9.995 else f"{ms:.1f}" if ms < 99.95 else f"{ms:.0f}"
