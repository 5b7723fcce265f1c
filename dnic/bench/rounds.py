"""`dnic bench`: every way to train a bundle, measured in turns, and what came of it as plain data.

Each round runs every way once, in the same order, so that a machine that slows down slows all of
them. Of the numbers of microbatches that a way is tried with, those that were clearly slower than
its best one are run in the first round only. Plain backprop on one core and the ceiling are always
among the ways: every figure is shown as a ratio to both. Accuracy is not looked at: `dnic compare`
trains to the end.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from dnic.bench.hosts import hosts_behind
from dnic.bench.laboratory import Laboratory
from dnic.bench.linkspec import LinkSpec
from dnic.bench.measured import Measured
from dnic.bench.nursery import nursery
from dnic.bench.summary import BASE, summary
from dnic.bench.timeline import write_trace
from dnic.bench.variant import FAMILIES, MICROBATCHES, LeftOut, Variant, variants
from dnic.codegen.planfile import read_plan_file
from dnic.errors import SpecError
from dnic.runtime.bundle import PLAN_FILE, read_plan
from dnic.runtime.launch import RankFault

SECONDS = 3.0
# Of the best number of microbatches; below, a way is not run with this number again.
_WORTH = 0.9
_FEWEST_ROUNDS = 3


def bench(
    folder: Path,
    *,
    families: Sequence[str] = FAMILIES,
    microbatches: Sequence[int] = MICROBATCHES,
    link: LinkSpec | None = None,
    rounds: int = 5,
    seconds: float = SECONDS,
    trace: Path | None = None,
    progress: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Measure a bundle beside its alternatives.

    Args:
        folder: the bundle.
        families: which ways, of `FAMILIES`.
        microbatches: to try where batches are cut.
        link: between the processes; None: this machine's own. Needs root and Linux.
        rounds: runs of each way.
        seconds: that each run trains for, about.
        trace: file for a trace of the last round, for Perfetto.
        progress: told what runs.

    Returns:
        `{"model", "batch_size", "stages", "cores", "link", "rounds", "variants", "left_out",
        "relay"}`; `dnic.bench.summary` says what is known of each variant.

    Raises:
        RankFault: plain backprop failed.
        RuntimeFault: this is no bundle, or there can be no such link here.
    """
    plan = read_plan(folder / PLAN_FILE)
    whole = read_plan_file(folder)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    found, left_out = variants(plan, families, microbatches, cores or 1)
    check_trace(trace)
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="dnic-bench-")))
        hosts = None
        if link is not None and any(variant.wired for variant in found):
            most = max(variant.processes for variant in found)
            hosts = stack.enter_context(hosts_behind(link, most))
        ranks = stack.enter_context(nursery()) if sys.platform.startswith("linux") else None
        laboratory = Laboratory(folder, whole, scratch, seconds, link, hosts, ranks)
        laps = None if trace is None else scratch / "laps"
        done, failed = _rounds(laboratory, found, rounds, laps, progress)
        found = [variant for variant in found if variant.name in done]
        if trace is not None and laps is not None:
            last = [variant.name for variant in found if len(done[variant.name]) == rounds]
            write_trace(trace, laps, last, whole)
        relay = hosts.relay_figures() if hosts is not None else None
    return {
        "model": whole.model.name,
        "batch_size": whole.train.batch_size,
        "stages": len(whole.stages),
        "cores": cores,
        "link": None if link is None else _link(link),
        "rounds": rounds,
        "variants": [summary(v, done, laboratory.wire_bytes(v)) for v in found],
        "left_out": [{"name": o.name, "reason": o.reason} for o in (*left_out, *failed)],
        "relay": relay,
    }


def check_trace(trace: Path | None) -> None:
    """Refuses a trace that could not be written, before anything is measured.

    Raises:
        SpecError: there is no such folder.
    """
    if trace is not None and not trace.resolve().parent.is_dir():
        raise SpecError(f"there is no folder {trace.resolve().parent}", where="--trace")


def _rounds(
    laboratory: Laboratory,
    found: Sequence[Variant],
    rounds: int,
    laps: Path | None,
    progress: Callable[[str], None],
) -> tuple[dict[str, list[Measured]], list[LeftOut]]:
    """The figures of every variant that never failed, and those that did, with their reasons.

    Variants that are not worth more than the first round have figures of that one alone.
    """
    progress("a first run")
    laboratory.warm_up()
    done: dict[str, list[Measured]] = {variant.name: [] for variant in found}
    failed: list[LeftOut] = []
    for number in range(1, rounds + 1):
        for variant in found:
            if variant.name not in done:
                continue
            progress(f"round {number} of {rounds}: {variant.name}")
            folder = laps / variant.name if laps is not None and number == rounds else None
            try:
                done[variant.name].append(laboratory.run(variant, folder))
            except RankFault as fault:
                if variant.name == BASE:
                    raise
                del done[variant.name]
                failed.append(LeftOut(variant.name, f"it failed: {_last_line(fault)}"))
        if number == 1 and rounds >= _FEWEST_ROUNDS:
            found = _worth_more(found, done)
    return done, failed


def _worth_more(found: Sequence[Variant], done: Mapping[str, Sequence[Measured]]) -> list[Variant]:
    """All but those that another number of microbatches has left behind."""
    best: dict[str, float] = {}
    for variant in found:
        for run in done.get(variant.name, ()):
            best[variant.family] = max(best.get(variant.family, 0.0), run.samples_per_s)
    return [
        variant
        for variant in found
        if variant.name in done
        and done[variant.name][0].samples_per_s >= _WORTH * best[variant.family]
    ]


def _last_line(fault: RankFault) -> str:
    """A report's first line where the user made a mistake, a traceback's last."""
    lines = [line for line in fault.report.splitlines() if line.strip()]
    if not lines:
        return fault.problem
    return lines[-1] if lines[0].startswith("Traceback") else lines[0]


def _link(link: LinkSpec) -> dict[str, Any]:
    rate = link.rate_bytes_per_s
    return {
        "text": link.text,
        "delay_us": link.delay_us,
        "rate_bytes_per_s": rate if rate < float("inf") else None,
    }
