"""One run by the real engine, where time matters: two processes under torchrun, a core for each.

    python -m studies.learning.engine RESULTS RUN CACHE

Over a slow link the processes are on two hosts, network namespaces joined by a relay (needs root).
Seconds are those of training: evaluations are between epochs and are not counted. Needs a machine
that does nothing else.
"""

from __future__ import annotations

import json
import signal
import sys
import tempfile
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from dnic.bench.hosts import Hosts, hosts_behind
from dnic.bench.linkspec import parse_link
from dnic.runtime.evaluation import Evaluation
from dnic.runtime.launch import launch
from dnic.runtime.metrics import METRICS_FILE, read_metrics
from dnic.runtime.options import Mode
from studies.learning.bundles import bundle_of
from studies.learning.child import told
from studies.learning.links import LINKS
from studies.learning.runs import Run
from studies.learning.train import point

PROCESSES = 2
MICROBATCHES = 4  # of the exact engine, where the bench found them best
MODES: Mapping[str, Mode] = {
    "backprop": "backprop",
    "ddp": "ddp",
    "exact": "exact",
    **dict.fromkeys(("stale", "decoupled", "local"), "decoupled"),
}
EXTRA = ("--no-checkpoint", "--device=cpu")


def timed_run(run: Run, cache: Path, folder: Path) -> dict[str, Any]:
    """Trains and evaluates a run against the clock.

    Args:
        run: by the engine.
        cache: of compiled bundles.
        folder: for the run's bundle and its output.

    Returns:
        `curve`: an entry for each epoch; `samples_per_s`: of the last; `predictions`: at the end.

    Raises:
        RankFault: a process failed.
        RuntimeFault: there can be no slow link on this machine.
    """
    bundle = bundle_of(run, cache, folder / "bundle")
    out = folder / "run"
    typed = LINKS[run.link].typed if run.way != "backprop" else None
    with nullcontext() if typed is None else hosts_behind(parse_link(typed), PROCESSES) as hosts:
        _launch(run, bundle, out, hosts)
    curve, seconds = [], 0.0
    rows = read_metrics(out / METRICS_FILE)
    for row in rows:
        seconds += row["train_s"]
        found = Evaluation(row["test_loss"], row["test_accuracy"], row["test_samples"])
        curve.append(point(run, row["epoch"], seconds, found))
    return {
        "curve": curve,
        "samples_per_s": rows[-1]["samples_per_s"],
        "predictions": _predictions(rows[-1]["interfaces"]),
    }


def _launch(run: Run, bundle: Path, out: Path, hosts: Hosts | None) -> None:
    mode = MODES[run.way]
    extra = [*EXTRA, f"--epochs={run.epochs}", f"--seed={run.seed}"]
    if run.way == "exact":
        extra.append(f"--microbatches={MICROBATCHES}")
    if hosts is not None:
        hosts.launch(bundle, mode=mode, processes=PROCESSES, out=out, extra=extra)
    else:
        processes = PROCESSES if run.way == "ddp" else None
        launch(bundle, mode=mode, processes=processes, out=out, pin=True, quiet=True, extra=extra)


def _predictions(interfaces: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """What the engine knows of its heads, under the reference's names."""
    found: dict[str, dict[str, float]] = {}
    for name, row in interfaces.items():
        cosine, ratio = row.get("cosine"), row.get("norm_ratio")
        if cosine is not None and ratio is not None:
            # Of the means over an epoch, where the reference has the mean of each batch's.
            share = 2 * ratio * cosine - ratio**2
            found[name] = {"cosine": cosine, "norm_ratio": ratio, "explained": share}
    return found


def main(output: str, text: str, cache: str) -> None:
    """One run; a line of JSON."""
    # When the study is ended, so are the run's processes, and the hosts are taken down.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    run = Run.from_json(json.loads(text))
    with tempfile.TemporaryDirectory(prefix="dnic-study-") as temporary:
        told(output, lambda: timed_run(run, Path(cache), Path(temporary)))


if __name__ == "__main__":
    main(*sys.argv[1:])
