"""Predicted and measured step times as a page for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median, quantiles
from typing import Any

TITLES = {"one_device": "one device", "ddp": "DDP", "1f1b": "1F1B", "decoupled": "decoupled"}
NEAR = 0.03
LEGEND = """\
Predicted over measured milliseconds of a training step, and the error. Both come from two
processes pinned to one core each, one thread each; the model on one device has one core. The plan
saw the model and this machine (`dnic calibrate`), never a run of what it predicts. Measured: median
over the runs of a run's mean step, the ways taken in turns. **Pick**: the way that is predicted to
be fastest, and how much slower it was than the fastest one measured. Sizes: see the model files in
`studies/predicted`.

The machine itself drifts: the same program on the same pinned core took 35.8, 37.8 and 45.4 ms a
step (mlp, size 1) within an hour in which nothing else ran. No prediction can be better than that.
"""


def errors(study: Mapping[str, Any], way: str | None = None) -> list[float]:
    """Relative errors, signed: predicted over measured, less one."""
    return [
        w["predicted_us"] / w["measured_us"] - 1
        for model in study["models"]
        for name, w in model["ways"].items()
        if way in (None, name)
    ]


def regret(model: Mapping[str, Any]) -> float:
    """By which share the pick was slower than the fastest way measured."""
    measured = {way: w["measured_us"] for way, w in model["ways"].items()}
    return float(measured[model["pick"]] / min(measured.values()) - 1)


def summary(study: Mapping[str, Any]) -> dict[str, float]:
    """Median and 90th percentile of the absolute error, and how often the pick was near it."""
    absolute = [abs(error) for error in errors(study)]
    near = [regret(model) <= NEAR for model in study["models"]]
    return {
        "median": median(absolute),
        "p90": quantiles(absolute, n=10, method="inclusive")[-1],
        "picked": sum(near) / len(near),
    }


def page(study: Mapping[str, Any]) -> str:
    """The study as Markdown."""
    figures = summary(study)
    lines = [
        "# Predicted against measured",
        "",
        f"`{study['command']}`, {study['date']}: dnic {study['dnic']}, torch {study['torch']}, "
        f"Python {study['python']}, {study['cores']} cores, {study['repeats']} runs of each, "
        f"load {study['load_before']} before it began.",
        "",
        LEGEND,
        f"Over {len(errors(study))} cases the error is {figures['median']:.1%} in the median and "
        f"{figures['p90']:.1%} at the 90th percentile (wanted: 5% and 15%). The pick was within "
        f"{NEAR:.0%} of the fastest way for {figures['picked']:.0%} of the models (wanted: 90%).",
        "",
        "| model | size | optimizer | " + " | ".join(TITLES.values()) + " | pick | slower by |",
        "|---" * (5 + len(TITLES)) + "|",
        *_rows(study),
        "",
        "| way | median error | 90th percentile | median of the signed error |",
        "|---|---|---|---|",
        *_ways(study),
        "",
    ]
    return "\n".join(lines)


def _rows(study: Mapping[str, Any]) -> Iterator[str]:
    for model in study["models"]:
        cells = [
            f"{w['predicted_us'] / 1000:.1f} / {w['measured_us'] / 1000:.1f} "
            f"({w['predicted_us'] / w['measured_us'] - 1:+.0%})"
            for w in (model["ways"][way] for way in TITLES)
        ]
        yield (
            f"| {model['model']} | {model['size']} | {model['optimizer']} | {' | '.join(cells)} "
            f"| {TITLES[model['pick']]} | {regret(model):.1%} |"
        )


def _ways(study: Mapping[str, Any]) -> Iterator[str]:
    for way, title in TITLES.items():
        signed = errors(study, way)
        absolute = [abs(error) for error in signed]
        p90 = (
            quantiles(absolute, n=10, method="inclusive")[-1] if len(absolute) > 1 else absolute[0]
        )
        yield f"| {title} | {median(absolute):.1%} | {p90:.1%} | {median(signed):+.1%} |"
