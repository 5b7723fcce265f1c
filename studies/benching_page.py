"""The bench as a page for people: a table for each link, and the goals beside what was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from statistics import median
from typing import Any

TITLES = {
    "loopback": "loopback",
    "5ms-1gbit": "5 ms, 1 Gb/s",
    "20ms-1gbit": "20 ms, 1 Gb/s",
    "5ms-100mbit": "5 ms, 100 Mb/s",
}
NAMES = {"mlp": "mlp", "transformer": "transformer", "conv": "convolution"}
# Ways that train exactly what backprop trains, on two processes; and all that need no second core.
PIPELINES = ("naive", "gpipe", "1f1b", "interleaved", "zerobubble", "exact")
EXACT = (*PIPELINES, "ddp", "backprop")
# All but these is the engine's own; messages are copied and handed over in the second row's.
MODEL_PARTS = ("forward", "head", "backward", "update", "learn", "wait", "data")
WIRE_PARTS = ("send", "send back", "receive")
NONE = "–"
LEGEND = """\
Samples per second over those of plain backprop on one core; in brackets, over the ceiling: both
stages alone, at once, without messages and heads, divided evenly. One core and one thread for each
rank, all ways in turns, medians over the rounds of the ratios within each round. gpipe-4: four
microbatches; with a star: run once, and a tenth or more slower there than with the best number of
microbatches. `threads` is one process with all cores. Links with delay (one way) and rate: two
network namespaces joined by a relay in user space, one rank in each; what the relay takes of the
cores is in every figure. Models: `studies/benched` and, with DNIC_SIZE=2, `studies/predicted`; SGD.
"""

PREDICTED = """\
What the plan of each bundle said of a way's step before anything ran, over what was measured, with
the number of microbatches that the plan takes for it where that was measured. Every way is planned
with the cuts that are best for it; all are measured with those of decoupled training.
"""
# Of a plan's ways, the bench's names; those with microbatches have their number behind.
PLANNED = {
    "one_device": "backprop",
    "ddp": "ddp",
    "naive": "naive",
    "gpipe": "gpipe",
    "1f1b": "1f1b",
    "zero_bubble": "zerobubble",
    "stale": "stale",
    "decoupled": "decoupled",
}


def page(study: Mapping[str, Any]) -> str:
    """The study as Markdown."""
    cases = study["cases"]
    lines = [
        "# Bench",
        "",
        f"`{study['command']}` (`make bench`): dnic {study['dnic']}, torch {study['torch']}, "
        f"Python {study['python']}, {study['cores']} cores; {_rounds(cases)}, {_dates(cases)}. "
        "How to read it, and how to measure a bundle of your own: [benching.md](benching.md).",
        "",
        LEGEND,
        "![Speed of every way over one core, by model and link](bench.svg)",
        "",
        "## Goals",
        "",
        "| what | goal | measured |",
        "|---|---|---|",
        *_goals(cases),
    ]
    for link, title in TITLES.items():
        here = [case for case in cases if case["link_name"] == link]
        if here:
            lines += [
                "",
                f"## {title[0].upper()}{title[1:]}",
                "",
                *_table(here),
                "",
                *_remarks(here),
            ]
    if any("predicted" in case for case in cases):
        lines += ["", "## Predicted and measured", "", PREDICTED, *_predicted(cases)]
    return "\n".join(lines) + "\n"


def ratio(case: Mapping[str, Any], way: str, others: Sequence[str]) -> float | None:
    """Speed of the best of a family over the best of others, median over rounds; None if unknown.

    The best is the one with the largest median, the same in all rounds.
    """
    one, other = best(case, (way,)), best(case, others)
    if one is None or other is None:
        return None
    return median(a / b for a, b in zip(one["rounds"], other["rounds"], strict=True))


def best(case: Mapping[str, Any], families: Sequence[str]) -> Mapping[str, Any] | None:
    """The fastest variant of some families, of those that were run in every round."""
    found = [
        v
        for v in case["variants"]
        if v["name"].partition("-")[0] in families and len(v["rounds"]) == case["rounds"]
    ]
    return max(found, key=lambda v: v["samples_per_s"], default=None)


def over_slowest(case: Mapping[str, Any]) -> float | None:
    """Speed of decoupled training over that of its slowest stage alone: no cut can do more."""
    found, alone = best(case, ("decoupled",)), best(case, ("ceiling",))
    if found is None or alone is None:
        return None
    return float(max(alone["step_us"]) / max(found["step_us"]))


def own_us(case: Mapping[str, Any], others: Sequence[str] = ()) -> float | None:
    """Microseconds of a decoupled step in which the engine does neither the model's work nor waits.

    Of the rank that has most of it.

    Args:
        case: of the study.
        others: parts that do not count either.
    """
    found = best(case, ("decoupled",))
    if found is None:
        return None
    return max(
        sum(us for part, us in parts.items() if part not in (*MODEL_PARTS, *others))
        for parts in found["parts_us"]
    )


def _goals(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    by = {(case["family"], case["link_name"]): case for case in cases}

    def row(what: str, goals: Mapping[str, float], value: Any, link: str) -> str:
        each = len(set(goals.values())) == 1
        named_goals = ", ".join(f"{NAMES[f]} {goal:.2f}" for f, goal in goals.items())
        wanted = f"{goals['mlp']:.2f} each" if each else named_goals
        cells = []
        for family, goal in goals.items():
            case = by.get((family, link))
            figure = None if case is None else value(case)
            cells.append(NONE if figure is None else _judged(figure, goal))
        named = zip(goals, cells, strict=True)
        return f"| {what} | {wanted} | {', '.join(f'{NAMES[f]} {c}' for f, c in named)} |"

    def same(goal: float) -> dict[str, float]:
        return dict.fromkeys(NAMES, goal)

    def kept(case: Mapping[str, Any]) -> float | None:
        home, away = by.get((case["family"], "loopback")), best(case, ("decoupled",))
        here = None if home is None else best(home, ("decoupled",))
        if here is None or away is None:
            return None
        return float(away["ratio_to_one_core"] / here["ratio_to_one_core"])

    yield row(
        "decoupled over the ceiling, loopback",
        same(0.98),
        lambda case: ratio(case, "decoupled", ("ceiling",)),
        "loopback",
    )
    yield row(
        "decoupled over its slowest stage alone, loopback",
        same(0.98),
        over_slowest,
        "loopback",
    )
    yield row(
        "decoupled over the best exact pipeline, loopback",
        {"mlp": 1.4, "transformer": 1.25, "conv": 1.0},
        lambda case: ratio(case, "decoupled", PIPELINES),
        "loopback",
    )
    yield row(
        "decoupled at 20 ms, 1 Gb/s over loopback (both over one core)",
        same(0.97),
        kept,
        "20ms-1gbit",
    )
    yield row(
        "decoupled over the best exact way of any kind, 20 ms, 1 Gb/s",
        {"mlp": 2.0, "transformer": 1.5, "conv": 1.2},
        lambda case: ratio(case, "decoupled", EXACT),
        "20ms-1gbit",
    )
    yield row(
        "the same, but for one core, which no link slows down",
        {"mlp": 2.0, "transformer": 1.5, "conv": 1.2},
        lambda case: ratio(case, "decoupled", (*PIPELINES, "ddp")),
        "20ms-1gbit",
    )
    for link, title in TITLES.items():
        yield row(
            f"our exact engine over torch's 1F1B, {title}, each at its best",
            same(1.0),
            lambda case: ratio(case, "exact", ("1f1b",)),
            link,
        )
    for what, others, goal in (
        ("engine's own time in a step", WIRE_PARTS, "below 300 us and 1% of 50 ms"),
        ("the same with copying messages and handing them over", (), NONE),
    ):
        figures = [
            f"{NAMES[family]} {us:.0f} us ({us / _step_us(by[family, 'loopback']):.1%})"
            for family in NAMES
            if (family, "loopback") in by
            and (us := own_us(by[family, "loopback"], others)) is not None
        ]
        yield f"| {what}, loopback | {goal} | {', '.join(figures) or NONE} |"
    yield (
        "| two hosts over the relay train to the same bits as loopback | yes "
        "| `tests/bench/test_hosts.py` |"
    )


def _judged(figure: float, goal: float) -> str:
    return f"**{figure:.3f}**" if figure >= goal else f"{figure:.3f} (missed)"


def _step_us(case: Mapping[str, Any]) -> float:
    found = best(case, ("decoupled",))
    return max(found["step_us"]) if found is not None else float("inf")


def _table(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    names = list(dict.fromkeys(v["name"] for case in cases for v in case["variants"]))
    titles = [NAMES[case["family"]] for case in cases]
    yield "| way | " + " | ".join(titles) + " | sent in a step |"
    yield "|---" * (len(titles) + 2) + "|"
    for name in names:
        found = [next((v for v in c["variants"] if v["name"] == name), None) for c in cases]
        sent = [NONE if v is None else _sent(v["wire_bytes_per_step"]) for v in found]
        cells = [_cell(v) for v in found]
        yield f"| {name} | {' | '.join(cells)} | {', '.join(sent)} |"
    yield ""
    yield "Samples per second, smallest to largest of the rounds:"
    yield ""
    yield "| way | " + " | ".join(titles) + " |"
    yield "|---" * (len(titles) + 1) + "|"
    for name in ("backprop", "decoupled", "ceiling"):
        found = [next((v for v in c["variants"] if v["name"] == name), None) for c in cases]
        yield f"| {name} | {' | '.join(_spread(v) for v in found)} |"


def _predicted(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    yield "| link | model | " + " | ".join(PLANNED.values()) + " |"
    yield "|---" * (len(PLANNED) + 2) + "|"
    for case in cases:
        measured_us = {v["name"]: max(v["step_us"]) for v in case["variants"]}
        cells = dict.fromkeys(PLANNED.values(), NONE)
        for way in case.get("predicted", ()):
            family = PLANNED.get(way["name"], "")
            count = way["microbatches"]
            name = f"{family}-{count}" if count > 1 else family
            if name in measured_us:
                behind = f" ({count})" if count > 1 else ""
                cells[family] = f"{way['step_us'] / measured_us[name]:.2f}{behind}"
        title, model = TITLES[case["link_name"]], NAMES[case["family"]]
        yield f"| {title} | {model} | {' | '.join(cells.values())} |"


def _cell(v: Mapping[str, Any] | None) -> str:
    if v is None:
        return NONE
    ceiling = v["ratio_to_ceiling"]
    brackets = "" if ceiling is None else f" ({ceiling:.2f})"
    once = "" if len(v["rounds"]) > 1 else " *"
    return f"{v['ratio_to_one_core']:.2f}{brackets}{once}"


def _spread(v: Mapping[str, Any] | None) -> str:
    if v is None:
        return NONE
    low, high = v["min_samples_per_s"], v["max_samples_per_s"]
    return f"{v['samples_per_s']:,.0f} ({low:,.0f} to {high:,.0f})"


def _sent(nbytes: float) -> str:
    return f"{nbytes / 2**20:.2f} MiB" if nbytes else NONE


def _remarks(cases: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for case in cases:
        words = [f"{NAMES[case['family']]}: window {case['window']}"]
        if case["head_width"] is not None:
            words.append(f"head of width {case['head_width']}")
        relay = case["relay"]
        if relay is not None:
            words.append(f"the relay took {relay['cpu_s'] / relay['seconds']:.1%} of a core")
        left = [f"{entry['name']} ({entry['reason']})" for entry in case["left_out"]]
        if left:
            words.append(f"left out: {', '.join(left)}")
        yield f"- {'; '.join(words)}."


def _rounds(cases: Sequence[Mapping[str, Any]]) -> str:
    counts = sorted({case["rounds"] for case in cases})
    return f"rounds of each way: {' or '.join(map(str, counts)) or 'none'}"


def _dates(cases: Sequence[Mapping[str, Any]]) -> str:
    dates = sorted({case["date"] for case in cases})
    return dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}" if dates else "never run"
