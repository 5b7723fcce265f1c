"""Maps of where decoupling pays: by stage time, link delay and number of stages.

    python -m studies.maps

All numbers are computed by `dnic.schedule`; nothing is run. Writes docs/maps.json, docs/maps.md
and docs/maps-*.svg.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from math import ceil, floor, log2
from typing import Any

from dnic import __version__
from dnic.cost import DeviceProfile, Link, load_profile
from dnic.schedule import CutWork, Machine, StageWork
from studies.alternatives import KINDS, Way, Workload, best_decoupled, best_exact
from studies.maps_page import page
from studies.process import ROOT
from studies.svg import COLOURS, Axis, Panel, legend, picture, shade, shade_labels, text

WINDOWS = (2, 4, 8)
SAMPLES = 32
FREE_SAMPLES = 8  # For each device, where exact training may choose a larger batch.

# The abstract stage: a third forward, two thirds back, then the update. What a transfer, a
# reduction and a head take is a part of the stage's time.
UPDATE_SHARE, TRANSFER_SHARE, GRADIENT_SHARE, HEAD_SHARE = 0.02, 0.1, 0.6, 0.02
FIXED_US = (
    50.0  # Of a step, of each pass of a microbatch, and of a head, whatever the stage's size.
)
BANDWIDTH = 1.25e9
STAGE_COUNTS = (2, 4, 8)

# The transformer block: GPT-2 medium's, float32.
WIDTH, TOKENS = 1024, 1024
FORWARD_LAUNCHES, SAVED_TENSORS, HEAD_WIDTH = 25, 17, 64
BANDWIDTHS = (("NVLink, 300 GB/s", 300e9), ("100 Gb/s", 12.5e9), ("1 Gb/s", 0.125e9))
NAMED_LINKS = (
    ("NVLink: 5 us, 300 GB/s", 5.0, 300e9),
    ("InfiniBand: 5 us, 25 GB/s", 5.0, 25e9),
    ("Ethernet: 50 us, 10 Gb/s", 50.0, 1.25e9),
    ("WAN: 20 ms, 10 Gb/s", 20e3, 1.25e9),
    ("WAN: 200 ms, 1 Gb/s", 200e3, 0.125e9),
)
DEPTHS = tuple(2**k for k in range(1, 13))


Rows = list[list[dict[str, Any]]]


@dataclass(frozen=True)
class Cell:
    """One point of a map; `speedup` is of decoupled over the best exact way, None without one."""

    exact: str
    exact_kind: str
    exact_us: float | None
    decoupled: str
    decoupled_us: float | None
    window: int | None
    speedup: float | None


def steps_of(first: float, last: float, each: int) -> list[float]:
    """A logarithmic row of values, so many in each decade, both ends among them."""
    count = round(each * log2(last / first) / log2(10))
    return [first * (last / first) ** (k / count) for k in range(count + 1)]


def cell(work: Workload, devices: int, exact_work: Workload | None = None) -> Cell:
    """Both sides' best at one point, compared by samples per second.

    Args:
        work: what decoupled training trains.
        devices: at most.
        exact_work: what exact training trains, where its batch is another one.
    """
    exact, found = best_exact(exact_work or work, devices), best_decoupled(work, devices)
    way = found[0] if found else None
    speedup = exact.step_us / way.step_us if exact and way else None
    if speedup and exact_work:
        speedup *= work.samples / exact_work.samples
    return Cell(
        exact=_named(exact),
        exact_kind=exact.kind if exact else "none fits",
        exact_us=_rounded(exact.step_us if exact else None),
        decoupled=_named(way),
        decoupled_us=_rounded(way.step_us if way else None),
        window=found[1] if found else None,
        speedup=_rounded(speedup),
    )


def batches(devices: int) -> list[int]:
    """What exact training may choose from where its batch is free: at least the common one."""
    most = FREE_SAMPLES * devices
    return sorted({max(SAMPLES, most // part) for part in (1, 4, 16)})


def free_cell(work: Workload, devices: int, larger: Sequence[Workload]) -> Cell:
    """The best for exact training of several batches."""
    cells = [cell(work, devices, other) for other in larger]
    found = [one for one in cells if one.speedup is not None]
    return min(found, key=lambda one: one.speedup or 0.0, default=cells[0])


def abstract(stage_us: float, delay_us: float) -> Workload:
    """A stage of so many microseconds in all, next to others like it, so far away."""
    passes_us = stage_us * (1 - UPDATE_SHARE)
    block = StageWork(
        forward_us=passes_us / 3,
        backward_us=passes_us * 2 / 3,
        update_us=stage_us * UPDATE_SHARE,
        gradient_bytes=round(GRADIENT_SHARE * stage_us * 1e-6 * BANDWIDTH),
    )
    nbytes = round(TRANSFER_SHARE * stage_us * 1e-6 * BANDWIDTH)
    head_us = FIXED_US + HEAD_SHARE * stage_us
    link = Link(bandwidth_bytes_per_s=BANDWIDTH, latency_us=delay_us)
    cut = CutWork(
        nbytes,
        nbytes,
        link,
        "synthetic",
        message_us=10.0,
        message_fixed_us=10.0,
        predict_us=head_us / 4,
        learn_us=head_us * 3 / 4,
    )
    machine = Machine(step_us=FIXED_US, microbatch_us=FIXED_US, overlap=1.0, link=link)
    return Workload(block, cut, machine, SAMPLES, WINDOWS)


def transformer(
    profile: DeviceProfile, delay_us: float, bandwidth: float, samples: int = SAMPLES
) -> Workload:
    """A block of GPT-2 medium on a device, so many sequences of 1,024 tokens, float32."""
    rows = samples * TOKENS
    weights = 12 * WIDTH * WIDTH
    nbytes = 4 * rows * WIDTH
    forward_us = profile.busy_us(rows * (2 * weights + 4 * TOKENS * WIDTH), 0)
    launches_us = FORWARD_LAUNCHES * profile.overhead_us
    # Adam, fused: reads parameter, gradient and two moments, writes three of them.
    update_us = 2 * profile.overhead_us + profile.busy_us(0, 7 * 4 * weights)
    block = StageWork(
        forward_us=forward_us + launches_us,
        backward_us=2 * (forward_us + launches_us),
        forward_fixed_us=launches_us,
        backward_fixed_us=2 * launches_us,
        update_us=update_us,
        parameter_bytes=4 * weights,
        gradient_bytes=4 * weights,
        optimizer_bytes=8 * weights,
        activation_bytes=SAVED_TENSORS * nbytes,
    )
    # A low-rank head: two products; learning does them three times and walks 14 times through a
    # tensor of the activation's size (dnic.cost.head).
    products_us = profile.busy_us(4 * rows * WIDTH * HEAD_WIDTH, 2 * nbytes)
    predict_us = 6 * profile.overhead_us + products_us
    learn_us = 20 * profile.overhead_us + 3 * products_us + profile.busy_us(0, 14 * 2 * nbytes)
    link = Link(bandwidth_bytes_per_s=bandwidth, latency_us=delay_us)
    message = Machine(
        overhead_us=profile.overhead_us, message_bytes_per_s=profile.message_bytes_per_s
    )
    cut = CutWork(
        nbytes,
        nbytes,
        link,
        "synthetic",
        message_us=message.message_us(nbytes),
        message_fixed_us=profile.overhead_us,
        predict_us=predict_us,
        learn_us=learn_us,
        head_bytes=4 * 3 * WIDTH * HEAD_WIDTH,
    )
    machine = Machine(step_us=100.0, microbatch_us=100.0, overlap=1.0, link=link)
    again = replace(
        block,
        backward_us=block.backward_us + block.forward_us,
        backward_fixed_us=block.backward_fixed_us + block.forward_fixed_us,
        activation_bytes=nbytes,
    )
    return Workload(block, cut, machine, samples, WINDOWS, profile.memory_bytes, again)


def stage_map() -> dict[str, Any]:
    """Stage time against delay, for 2, 4 and 8 stages."""
    delays, times = steps_of(1, 2e5, 4), steps_of(100, 1e6, 5)
    return {
        "delays_us": delays,
        "stage_us": times,
        "panels": {
            str(count): _table(times, delays, partial(_stage_cell, count)) for count in STAGE_COUNTS
        },
    }


def depth_map(profile: DeviceProfile) -> dict[str, Any]:
    """Number of stages against delay, for three bandwidths."""
    delays = steps_of(1, 2e5, 4)
    return {
        "delays_us": delays,
        "stages": list(DEPTHS),
        "panels": {
            name: _table(DEPTHS, delays, partial(_depth_cell, profile, speed))
            for name, speed in BANDWIDTHS
        },
    }


def _stage_cell(count: int, stage_us: float, delay_us: float) -> Cell:
    return cell(abstract(stage_us, delay_us), count)


def _depth_cell(profile: DeviceProfile, bandwidth: float, count: int, delay_us: float) -> Cell:
    return cell(transformer(profile, delay_us, bandwidth), count)


def link_curves(profile: DeviceProfile) -> dict[str, Any]:
    """Number of stages on links that exist; exact training at the same batch, and at its own."""
    same: dict[str, list[dict[str, Any]]] = {}
    free: dict[str, list[dict[str, Any]]] = {}
    for name, delay, speed in NAMED_LINKS:
        work = transformer(profile, delay, speed)
        same[name] = [asdict(cell(work, n)) for n in DEPTHS]
        free[name] = []
        for n in DEPTHS:
            larger = [transformer(profile, delay, speed, batch) for batch in batches(n)]
            free[name].append(asdict(free_cell(work, n, larger)))
        print(".", end="", flush=True)
    print(flush=True)
    return {"stages": list(DEPTHS), "same_batch": same, "larger_batch": free}


def _table(
    rows: Sequence[Any], columns: Sequence[float], make: Callable[[Any, float], Cell]
) -> Rows:
    table: Rows = []
    for row in rows:
        table.append([asdict(make(row, column)) for column in columns])
        print(".", end="", flush=True)
    print(flush=True)
    return table


DELAY_TICKS = (
    (1, "1 us"),
    (10, "10 us"),
    (100, "100 us"),
    (1e3, "1 ms"),
    (1e4, "10 ms"),
    (1e5, "100 ms"),
)
TIME_TICKS = ((100, "0.1 ms"), (1e3, "1 ms"), (1e4, "10 ms"), (1e5, "100 ms"), (1e6, "1 s"))
COUNT_TICKS = tuple((2**k, f"{2**k:,}") for k in (1, 3, 5, 7, 9, 12))


def draw(content: dict[str, Any], y: Axis, title: str, panel_title: Callable[[str], str]) -> str:
    """Above, the speedup over the best exact way; below, which exact way that is."""
    x = Axis("one-way link delay", content["delays_us"], DELAY_TICKS)
    seen = {entry["exact_kind"] for rows in content["panels"].values() for r in rows for entry in r}
    # The same colour for the same way in every picture.
    colours = {kind: c for kind, c in zip(KINDS, COLOURS, strict=True) if kind in seen}
    parts = [[text(20, 26, title, size=15, weight="bold")]]
    for place, (name, rows) in enumerate(content["panels"].items()):
        left = 75 + place * 310
        above = Panel(left, 70, 225, 225, x, y, panel_title(name))

        above.cells(partial(_shade, rows))
        above.contour(partial(_log_speedup, rows))
        below = Panel(left, 375, 225, 225, x, y, "best exact way")
        below.cells(partial(_kind, rows, colours))
        parts += [above.svg(), below.svg()]
    right = 75 + 310 * len(content["panels"]) - 45
    parts.append(legend(right, 80, "decoupled / best exact", shade_labels()))
    parts.append([text(right, 300, "black line: 1", size=11)])
    parts.append(legend(right, 385, "best exact way", [(c, kind) for kind, c in colours.items()]))
    return picture(right + 215, 650, title, parts)


def _shade(rows: Rows, column: int, row: int) -> str:
    speedup = rows[row][column]["speedup"]
    return "#ffffff" if speedup is None else shade(speedup)


def _log_speedup(rows: Rows, column: int, row: int) -> float:
    return log2(rows[row][column]["speedup"] or 1.0)


def _kind(rows: Rows, colours: dict[str, str], column: int, row: int) -> str:
    return colours[rows[row][column]["exact_kind"]]


def draw_curves(content: dict[str, Any], title: str) -> str:
    """Speedup by number of stages, a curve for each link."""
    parts = [[text(20, 26, title, size=15, weight="bold")]]
    x = Axis("stages (devices)", content["stages"], COUNT_TICKS)
    colours = [COLOURS[place] for place in (5, 2, 3, 1, 6)]
    titles = {
        "same_batch": f"both with a batch of {SAMPLES}",
        "larger_batch": f"exact with up to {FREE_SAMPLES} samples a device",
    }
    for place, (key, words) in enumerate(titles.items()):
        found = [e["speedup"] for row in content[key].values() for e in row if e["speedup"]]
        low, high = floor(log2(min(found))), ceil(log2(max(found)))
        values = [2.0**k for k in range(low, high + 1)]
        y = Axis("samples/s, decoupled / best exact", values, [(v, f"{v:g}") for v in values])
        panel = Panel(75 + 440 * place, 70, 340, 330, x, y, words)
        panel.curve([(DEPTHS[0], 1.0), (DEPTHS[-1], 1.0)], "#222222", "4 3")
        for colour, row in zip(colours, content[key].values(), strict=True):
            pairs = zip(content["stages"], row, strict=True)
            panel.curve([(n, e["speedup"]) for n, e in pairs if e["speedup"]], colour)
        parts.append(panel.svg())
    entries = list(zip(colours, content["same_batch"], strict=True))
    parts.append(legend(885, 85, "link, one way", entries))
    return picture(1100, 460, title, parts)


def _named(way: Way | None) -> str:
    return way.name if way else "none fits"


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def main() -> None:
    """Compute, draw and write everything."""
    profile = load_profile("A100-80GB")
    now = datetime.now(UTC)
    block = transformer(profile, 0.0, 1e9)
    content: dict[str, Any] = {
        "command": "python -m studies.maps",
        "date": now.isoformat(timespec="seconds"),
        "dnic": __version__,
        "python": platform.python_version(),
        "computed": "by dnic.schedule; nothing was run",
        "device": profile.model_dump(),
        "windows": WINDOWS,
        "samples": SAMPLES,
        "free_samples_per_device": FREE_SAMPLES,
        "abstract": {
            "update_share": UPDATE_SHARE,
            "transfer_share": TRANSFER_SHARE,
            "gradient_share": GRADIENT_SHARE,
            "head_share": HEAD_SHARE,
            "fixed_us": FIXED_US,
            "bandwidth_bytes_per_s": BANDWIDTH,
        },
        "transformer": {"block": asdict(block.block), "head_us": _head_us(block)},
        "stage_map": stage_map(),
        "depth_map": depth_map(profile),
        "links": link_curves(profile),
    }
    docs = ROOT / "docs"
    times = Axis("time of a stage", content["stage_map"]["stage_us"], TIME_TICKS)
    pictures = {
        "maps-stage.svg": draw(
            content["stage_map"],
            times,
            "Where decoupling pays: stage time against link delay",
            lambda name: f"{name} stages",
        ),
        "maps-depth.svg": draw(
            content["depth_map"],
            Axis("stages (devices)", list(DEPTHS), COUNT_TICKS),
            "Where decoupling pays: number of stages against link delay",
            lambda name: name,
        ),
        "maps-links.svg": draw_curves(
            content["links"], "Decoupling by number of stages, on links that exist"
        ),
    }
    for name, drawn in pictures.items():
        (docs / name).write_text(drawn, "utf-8")
    (docs / "maps.json").write_text(json.dumps(content, separators=(",", ":")) + "\n", "utf-8")
    (docs / "maps.md").write_text(page(content), "utf-8")
    print("wrote docs/maps.md")


def _head_us(work: Workload) -> dict[str, float]:
    return {"predict": round(work.cut.predict_us, 1), "learn": round(work.cut.learn_us, 1)}


if __name__ == "__main__":
    main()
