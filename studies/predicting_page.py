"""Predicted and measured step times as a page for people."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from statistics import median, quantiles
from typing import Any

TITLES = {"one_device": "one device", "ddp": "DDP", "1f1b": "1F1B", "decoupled": "decoupled"}
NEAR = 0.03
LEGEND = """\
Predicted over measured milliseconds of a training step, and the error. Two processes are pinned to
one core each, one thread each; the model on one device has one core. In every round the model is
planned afresh, with nothing known but the machine's calibration (`dnic calibrate`), and then every
way is run, in turns; the plan never sees a run of what it predicts. Both figures are medians over
the rounds; measured is a run's median step. **Pick**: the way that is predicted to be fastest, and
how much slower it was than the fastest one measured. Sizes: see the model files in
`studies/predicted`.

The machine itself drifts: the same program on the same pinned core takes 5 to 10% longer or shorter
a few minutes later, while nothing else runs. No prediction can be better than that.
"""


def errors(
    study: Mapping[str, Any], way: str | None = None, measured: str = "measured_us"
) -> list[float]:
    """Relative errors, signed: predicted over measured, less one."""
    return [
        w["predicted_us"] / w[measured] - 1
        for model in study["models"]
        for name, w in model["ways"].items()
        if way in (None, name)
    ]


def single_errors(study: Mapping[str, Any]) -> list[float]:
    """Errors of each single plan against the one run that followed it."""
    return [
        turn["predicted_us"] / turn["median_us"] - 1
        for model in study["models"]
        for way in model["ways"].values()
        for turn in way["rounds"]
    ]


def spread(study: Mapping[str, Any]) -> float:
    """How far apart equal runs were: median over all cases of the largest over the smallest."""
    runs = [
        [turn["median_us"] for turn in way["rounds"]]
        for model in study["models"]
        for way in model["ways"].values()
    ]
    return median(max(times) / min(times) for times in runs) - 1


def regret(model: Mapping[str, Any]) -> float:
    """By which share the pick was slower than the fastest way measured."""
    measured = {way: w["measured_us"] for way, w in model["ways"].items()}
    return float(measured[model["pick"]] / min(measured.values()) - 1)


def summary(study: Mapping[str, Any]) -> dict[str, float]:
    """Median and 90th percentile of the absolute error, and how often the pick was near it."""
    near = [regret(model) <= NEAR for model in study["models"]]
    middle, high = _absolute(errors(study))
    return {"median": middle, "p90": high, "picked": sum(near) / len(near)}


def _absolute(signed: list[float]) -> tuple[float, float]:
    """Median and 90th percentile of the absolute values."""
    absolute = [abs(error) for error in signed]
    return median(absolute), quantiles(absolute, n=10, method="inclusive")[-1]


def page(study: Mapping[str, Any]) -> str:
    """The study as Markdown."""
    figures = summary(study)
    rounds = " or ".join(map(str, study["rounds"]))
    mean = _absolute(errors(study, measured="mean_us"))
    single = _absolute(single_errors(study))
    lines = [
        "# Predicted against measured",
        "",
        f"`{study['command']}`, {study['date']}: dnic {study['dnic']}, torch {study['torch']}, "
        f"Python {study['python']}, {study['cores']} cores, {rounds} rounds, "
        f"load {study['load_before']} before it began.",
        "",
        LEGEND,
        f"Over {len(errors(study))} cases the error is {figures['median']:.1%} in the median and "
        f"{figures['p90']:.1%} at the 90th percentile (wanted: 5% and 15%). The pick was within "
        f"{NEAR:.0%} of the fastest way for {figures['picked']:.0%} of the models (wanted: 90%).",
        "",
        f"Against mean steps, which count every hiccup of the machine, it is {mean[0]:.1%} and "
        f"{mean[1]:.1%}; of single plans against the single run that followed, {single[0]:.1%} and "
        f"{single[1]:.1%}. Equal runs lay {spread(study):.1%} apart (largest over smallest of "
        f"{rounds}, median over the cases).",
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
        middle, high = _absolute(signed) if len(signed) > 1 else (abs(signed[0]),) * 2
        yield f"| {title} | {middle:.1%} | {high:.1%} | {median(signed):+.1%} |"
