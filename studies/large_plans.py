"""How long planning GPT-3 takes, from tracing on the meta device to the plan, and what it says.

    python -m studies.large_plans

Every plan is made in a process of its own. Writes docs/large.json and docs/large.md.
"""

from __future__ import annotations

import io
import json
import os
import platform
import resource
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from rich.console import Console

from dnic import __version__
from dnic.compiler import plan_model
from dnic.report import verdict_table
from dnic.spec import load_spec
from studies.passes import PassClock
from studies.process import append, results_of
from studies.scaling import write

SPEC = Path(__file__).parent / "sized" / "gpt3.yaml"
LAYERS = (24, 48, 96)
DEVICES = (256, 512)
SECONDS = 900
DEMANDED_S = 60
GIB = 2**30


@dataclass(frozen=True)
class LargePlan:
    """What planning took and found.

    Attributes:
        layers, devices: of the model and of the machine.
        parameters: of the model.
        operations: of the fine capture.
        pass_s: seconds of each pass.
        total_s, cpu_s: of all, by the clock and of a processor.
        peak_bytes: the largest resident memory of the process.
        stages: of the plan.
        verdict: the table and the sentence, as `dnic plan` prints them.
    """

    layers: int
    devices: int
    parameters: int
    operations: int
    pass_s: dict[str, float]
    total_s: float
    cpu_s: float
    peak_bytes: int
    stages: int
    verdict: str


def plan_large(layers: int, devices: int) -> LargePlan:
    """Plan one model; call it once in a process."""
    os.environ["DNIC_LAYERS"] = str(layers)
    started, started_cpu = time.perf_counter(), time.process_time()
    clock = PassClock()
    spec = load_spec(SPEC)
    spec = spec.model_copy(update={"devices": spec.devices.model_copy(update={"count": devices})})
    planned = plan_model(spec, clock)
    total_s, cpu_s = time.perf_counter() - started, time.process_time() - started_cpu
    console = Console(file=io.StringIO(), width=100, no_color=True)
    console.print(verdict_table(planned.plan))
    return LargePlan(
        layers=layers,
        devices=devices,
        parameters=planned.plan.model.parameters,
        operations=len(planned.graph.operations),
        pass_s=clock.seconds,
        total_s=total_s,
        cpu_s=cpu_s,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        stages=len(planned.plan.stages),
        verdict=console.file.getvalue(),  # type: ignore[attr-defined]  # a StringIO
    )


def page(plans: list[LargePlan], about: str) -> str:
    """The text of docs/large.md."""
    names = list(plans[-1].pass_s)
    largest = plans[-1]
    return "\n".join(
        [
            "# Planning GPT-3",
            "",
            about,
            "",
            "`dnic plan --spec studies/sized/gpt3.yaml`: traced on the meta device, costed from "
            "the published figures of an A100-80GB, cut by the exact solver, every way to train "
            f"predicted. One process each, one thread. Wanted: {DEMANDED_S} s for 96 layers on "
            "512 devices.",
            "",
            "| layers | parameters | operations | devices | seconds | of a processor | memory "
            "| stages | " + " | ".join(names) + " |",
            "|---" * (8 + len(names)) + "|",
            *(
                f"| {p.layers} | {p.parameters / 1e9:.0f} billion | {p.operations:,} | {p.devices} "
                f"| {p.total_s:.1f} | {p.cpu_s:.1f} | {p.peak_bytes / GIB:.2f} GiB | {p.stages} | "
                + " | ".join(f"{p.pass_s.get(name, 0.0):.1f}" for name in names)
                + " |"
                for p in plans
            ),
            "",
            f"What it says of {largest.layers} layers on {largest.devices} devices. The batch is "
            "what one device can hold without recomputing activations, eight sequences, and no "
            "sample is divided: far too few to fill an exact pipeline of this length, and nobody "
            "has trained hundreds of decoupled cuts ([maps.md](maps.md) has larger batches, and "
            "the limits of such a comparison):",
            "",
            *(f"    {line}".rstrip() for line in largest.verdict.rstrip().splitlines()),
            "",
        ]
    )


def main() -> None:
    """Measure, and write both files."""
    load = os.getloadavg()[0]
    cases = [(layers, DEVICES[-1]) for layers in LAYERS[:-1]]
    cases += [(LAYERS[-1], devices) for devices in DEVICES]
    plans = []
    for layers, devices in cases:
        done, words = results_of("studies.large_plans", str(layers), str(devices), seconds=SECONDS)
        if not done:
            raise RuntimeError(f"{layers} layers on {devices} devices: {words}")
        plans.append(LargePlan(**done[0]))
        print(f"{layers} layers, {devices} devices: {plans[-1].total_s:.1f} s", flush=True)
    now = datetime.now(UTC)
    about = (
        f"`python -m studies.large_plans`, {now:%Y-%m-%d}: dnic {__version__}, torch "
        f"{version('torch')}, transformers {version('transformers')}, Python "
        f"{platform.python_version()}, {os.cpu_count()} cores, load {load:.1f} before it began."
    )
    content = {
        "command": "python -m studies.large_plans",
        "date": now.isoformat(timespec="seconds"),
        "load_before": round(load, 2),
        "plans": [vars(plan) for plan in plans],
    }
    write("large.json", json.dumps(content, indent=2) + "\n")
    write("large.md", page(plans, about))


if __name__ == "__main__":
    if len(sys.argv) > 1:
        append(sys.argv[1], plan_large(int(sys.argv[2]), int(sys.argv[3])))
    else:
        main()
