"""A large model on the meta device through the whole compiler: seconds of each pass, peak memory.

As a program it measures one model, and appends a line of JSON to a file:

    python -m studies.sized_compilation results.jsonl llama 96
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from dnic.compiler import compile_model
from dnic.spec import Spec, spec_from_mapping
from studies.passes import PassClock
from studies.process import append

FOLDER = Path(__file__).parent / "sized"
STAGES = 4


@dataclass(frozen=True)
class SizedCompilation:
    """What compiling one large model took.

    Attributes:
        model: stem of its file.
        layers: its transformer blocks.
        parameters: of the model.
        operations: of the fine capture.
        stages: that it was cut into.
        lines: of the emitted `stages.py`.
        compared: tensors whose shapes the proof compared.
        pass_s: seconds of each pass, by its name.
        total_s: seconds of all, imports of libraries by the model file included.
        cpu_s: processor time of all, which other programs on the machine hardly lengthen.
        peak_bytes: the largest resident memory of the process.
    """

    model: str
    layers: int
    parameters: int
    operations: int
    stages: int
    lines: int
    compared: int
    pass_s: dict[str, float]
    total_s: float
    cpu_s: float
    peak_bytes: int


def sized_spec(model: str) -> Spec:
    """Four stages on the stock profile of a CPU core, planned without weights."""
    return spec_from_mapping(
        {
            "model": {"file": str(FOLDER / f"{model}.py"), "meta": True},
            "devices": {"count": STAGES, "profile": "cpu-core"},
            "partition": {"stages": STAGES},
        },
        "studies.scaling",
    )


def compile_sized(model: str, layers: int) -> SizedCompilation:
    """Compile one model; call it once in a process, whose peak memory is the model's."""
    os.environ["DNIC_LAYERS"] = str(layers)
    started, started_cpu = time.perf_counter(), time.process_time()
    clock = PassClock()
    with tempfile.TemporaryDirectory(prefix="dnic-study-") as temporary:
        folder = Path(temporary) / "bundle"
        planned, rung = compile_model(sized_spec(model), folder, observe=clock)
        lines = len((folder / "stages.py").read_text().splitlines())
    return SizedCompilation(
        model=model,
        layers=layers,
        parameters=planned.plan.model.parameters,
        operations=len(planned.graph.operations),
        stages=len(planned.plan.stages),
        lines=lines,
        compared=rung.compared,
        pass_s=clock.seconds,
        total_s=time.perf_counter() - started,
        cpu_s=time.process_time() - started_cpu,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


if __name__ == "__main__":
    append(sys.argv[1], compile_sized(sys.argv[2], int(sys.argv[3])))
