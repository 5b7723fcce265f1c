"""A program of the study that trains nothing: its run's seed and window say what it does."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

from dnic.errors import RuntimeFault
from studies.learning.child import told


def main(output: str, text: str, cache: str) -> None:
    """Window 2: fails; 3: dies; 4: hangs; otherwise tells its core, after a moment."""
    run = json.loads(text)
    Path(cache, f"began-{run['seed']}").touch()
    if run["window"] == 3:
        sys.exit("something went wrong")
    if run["window"] == 4:
        time.sleep(600)
    time.sleep(0.3)

    def program() -> dict[str, object]:
        if run["window"] == 2:
            raise RuntimeFault("no such gradient", where="plan.yaml")
        epochs = range(1, run["epochs"] + 1)
        curve = [{"epoch": n, "step": n, "seconds": float(n), "quality": 50.0} for n in epochs]
        core = list(os.sched_getaffinity(0))
        return {"curve": curve, "core": core, "samples_per_s": 1000.0}

    told(output, program)


if __name__ == "__main__":
    main(*sys.argv[1:])
