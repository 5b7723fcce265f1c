"""One model of the zoo as a bundle of two stages that trains: real processes, 20 steps.

Rungs 2 and 3 of the proof ladder, and a decoupled run as a user starts it.

    python -m studies.training results.jsonl gpt2
"""

from __future__ import annotations

import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dnic.compiler import compile_model
from dnic.errors import DnicError
from dnic.proof.bundle import STEPS, verify_bundle
from dnic.runtime import launch, read_record
from studies.compilation import spec_of
from studies.process import append
from studies.zoo import Case, cases

STAGES = 2
TRAINED = ("gpt2", "gpt2+labels", "llama", "bert", "t5", "vit", "resnet18", "unet", "mixtral")


@dataclass(frozen=True)
class Training:
    """What came of training one case.

    Attributes:
        case: its name.
        proven: whether rungs 2 and 3 passed.
        exact: largest difference between a loss of the exact run and that of plain backprop.
        oracle: the same between the oracle run and the exact run.
        steps: how many losses were compared.
        synthetic: interfaces whose gradient a head predicts.
        interfaces: all of them that a gradient crosses.
        decoupled: losses of the decoupled run.
        seconds: for everything.
        error: what went wrong.
    """

    case: str
    proven: bool = False
    exact: float | None = None
    oracle: float | None = None
    steps: int = 0
    synthetic: int = 0
    interfaces: int = 0
    decoupled: list[float] = field(default_factory=list)
    seconds: float = 0.0
    error: str = ""


def trained(case: Case, folder: Path) -> Training:
    """Compile a case into `folder`, prove it by runs and train it decoupled."""
    start = time.perf_counter()
    found: dict[str, Any] = {}
    try:
        planned, _ = compile_model(spec_of(case, STAGES), folder / "bundle")
        crossed = [
            interface
            for interface in planned.plan.interfaces
            if any(tensor.differentiable for tensor in interface.tensors)
        ]
        found["interfaces"] = len(crossed)
        found["synthetic"] = sum(interface.gradient == "synthetic" for interface in crossed)
        rungs = verify_bundle(folder / "bundle")["rungs"]
        found["proven"] = all(rungs[name]["passed"] is True for name in ("exact", "oracle"))
        found["exact"] = rungs["exact"]["max_abs_error"]
        found["oracle"] = rungs["oracle"]["max_abs_error"]
        found["steps"] = rungs["exact"]["compared"]
        found["error"] = "; ".join(rungs["exact"]["failures"] + rungs["oracle"]["failures"])
        found["decoupled"] = decoupled(folder)
    except DnicError as error:
        found["error"] = str(error)
    return Training(case.name, seconds=round(time.perf_counter() - start, 1), **found)


def decoupled(folder: Path) -> list[float]:
    """The losses of a decoupled run of the bundle in `folder`."""
    launch(
        folder / "bundle",
        epochs=STEPS,
        mode="decoupled",
        out=folder / "run",
        quiet=True,
        extra=(
            "--no-evaluate",
            "--no-checkpoint",
            "--device=cpu",
            f"--max-steps={STEPS}",
            f"--record={folder / 'record'}",
        ),
    )
    return [round(loss, 6) for loss in read_record(folder / "record").losses]


def main(output: str, name: str) -> None:
    """Train a case; a line of JSON."""
    (case,) = (case for case in cases([name]) if case.name == name)
    with tempfile.TemporaryDirectory(prefix="dnic-study-") as temporary:
        append(output, trained(case, Path(temporary)))


if __name__ == "__main__":
    main(*sys.argv[1:])
