"""One model of the zoo through the real compiler, at one number of stages, and what came of it.

As a program it does so for several numbers of stages and appends a line of JSON for each to a
file, so that what was measured before a crash is kept:

    python -m studies.compilation results.jsonl gpt2+labels 2,4,8
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import torch

from dnic.compiler import Planned, compile_model
from dnic.errors import DnicError, PartitionError, TraceError
from dnic.partition.plan import Plan
from dnic.spec import Spec, spec_from_mapping
from studies.passes import PassClock
from studies.process import append
from studies.zoo import Case, cases

Outcome = Literal["proven", "refused", "failed"]

SEED = 0
CAPTURES = ("capture", "recapture")
DECISIONS = ("graph", "cost", "cut", "plan", "emit")


@dataclass(frozen=True)
class Crossing:
    """What crosses one interface."""

    name: str
    tensors: int
    differentiable: int
    nbytes: int


@dataclass(frozen=True)
class Compilation:
    """What came of compiling one case.

    Attributes:
        case: its name.
        asked: number of stages asked for.
        stages: number of stages made: as many, or the most that the model allows; 0 where none.
        outcome: `proven` when rung 1 of the proof ladder passed; `refused` when the compiler says
            what stands against it and where; else `failed`, which is a bug of ours.
        parameters: of the model.
        capture_s, decide_s, prove_s: seconds for both captures; for graph, costs, cuts, plan and
            emitted files; for the proof.
        crossings: for each interface.
        shared: parameters that several stages use.
        whole: modules that are kept whole, with the reason.
        largest_share: parameters of the largest stage, as a share of the model's.
        compared: tensors that the proof compared.
        max_abs_error: the largest difference in what it compared.
        errors: the same by kind (outputs, gradients, buffers).
        fewer: why there are not as many stages as were asked for.
        error: what went wrong, as the command line says it.
    """

    case: str
    asked: int
    stages: int = 0
    outcome: Outcome = "failed"
    parameters: int = 0
    capture_s: float = 0.0
    decide_s: float = 0.0
    prove_s: float = 0.0
    crossings: tuple[Crossing, ...] = ()
    shared: int = 0
    whole: dict[str, str] = field(default_factory=dict)
    largest_share: float = 0.0
    compared: int = 0
    max_abs_error: float = 0.0
    errors: dict[str, float] = field(default_factory=dict)
    fewer: str = ""
    error: str = ""


def compiled(case: Case, stages: int, folder: Path) -> Compilation:
    """Compile a case into `folder` with as many of the stages asked for as the model allows.

    Errors that dnic explains are part of the result; others are raised.
    """
    result = Compilation(case.name, stages)
    for count in range(stages, 0, -1):
        clock = PassClock()
        try:
            planned, rung = compile_model(spec_of(case, count), folder, observe=clock)
        except PartitionError as error:
            result = replace(result, fewer=result.fewer or str(error))
            continue
        except DnicError as error:
            outcome: Outcome = "refused" if isinstance(error, TraceError) else "failed"
            result = replace(result, outcome=outcome, error=str(error))
        else:
            result = replace(
                result,
                stages=len(planned.plan.stages),
                outcome="proven" if rung.passed else "failed",
                compared=rung.compared,
                max_abs_error=rung.max_abs_error,
                errors=asdict(rung.errors) if rung.errors else {},
                **_planned(planned),
            )
        return replace(
            result,
            capture_s=clock.total(CAPTURES),
            decide_s=clock.total(DECISIONS),
            prove_s=clock.total(("prove",)),
        )
    return replace(result, outcome="refused", error=result.fewer)


def spec_of(case: Case, stages: int) -> Spec:
    """The spec that asks for a number of stages; devices are those of a stock profile."""
    return spec_from_mapping(
        {
            "model": case.model_spec(),
            "train": {"seed": SEED},
            "devices": {"count": stages, "profile": "cpu-core"},
            "partition": {"stages": stages},
        },
        case.name,
    )


def _planned(planned: Planned) -> dict[str, Any]:
    plan: Plan = planned.plan
    return {
        "parameters": plan.model.parameters,
        "crossings": tuple(
            Crossing(
                name=interface.name,
                tensors=len(interface.tensors),
                differentiable=sum(tensor.differentiable for tensor in interface.tensors),
                nbytes=interface.nbytes,
            )
            for interface in plan.interfaces
        ),
        "shared": len(plan.shared),
        "whole": dict(planned.coarse.whole),
        "largest_share": round(
            max(stage.parameters for stage in plan.stages) / max(plan.model.parameters, 1), 4
        ),
    }


def main(output: str, name: str, counts: str) -> None:
    """Compile a case at several numbers of stages; a line of JSON for each."""
    torch.set_num_threads(1)
    (case,) = (case for case in cases([name]) if case.name == name)
    for count in map(int, counts.split(",")):
        with tempfile.TemporaryDirectory(prefix="dnic-study-") as temporary:
            append(output, compiled(case, count, Path(temporary) / "bundle"))


if __name__ == "__main__":
    main(*sys.argv[1:])
