"""One run by the single-process reference: as many stages as asked for, in lockstep, no clock.

    python -m studies.learning.train RESULTS RUN CACHE

`RUN` is a run as JSON, `RESULTS` gets a line of JSON. The undivided model is evaluated after every
epoch, with the parameters that the stages have then.
"""

from __future__ import annotations

import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from dnic.proof.modules import bundle_modules
from dnic.runtime.bundle import load_bundle
from dnic.runtime.evaluation import Evaluation, Score
from dnic.runtime.reference import Reference
from studies.learning.bundles import bundle_of
from studies.learning.child import told
from studies.learning.runs import Run

EVALUATED_AT_ONCE = 500
SHORT_STEPS = 20


def trained(run: Run, cache: Path, folder: Path) -> dict[str, Any]:
    """Trains and evaluates a run.

    Args:
        run: by the reference.
        cache: of compiled bundles.
        folder: for the run's own bundle; must not exist.

    Returns:
        `curve`: an entry for each epoch; `predictions`: of each interface at the end; with a guard
        `turns`, what it changed at each.

    Raises:
        DnicError: this dnic cannot do what the run asks for.
    """
    bundle = load_bundle(bundle_of(run, cache, folder))
    curve: list[dict[str, Any]] = []
    with bundle_modules(bundle.folder) as (model, stages):
        reference = _reference(bundle, model, stages)
        whole, test = model.build_model(), model.test_data()
        begin = time.perf_counter()
        resting = 0.0

        def evaluate(epoch: int) -> None:
            nonlocal resting
            arrived = time.perf_counter()
            whole.load_state_dict(reference.record().parameters)
            found = evaluated(whole, test, model.loss)
            curve.append(point(run, epoch, arrived - begin - resting, found))
            resting += time.perf_counter() - arrived

        losses = reference.run(run.epochs, after_epoch=evaluate).losses
    found = {
        "curve": curve,
        "train_losses": [_finite(loss) for loss in _means(losses, run.epochs)],
        "predictions": _rounded(reference.predictions()),
    }
    return found | {"turns": _turns(reference)} if run.guard else found


def timed(run: Run, cache: Path, folder: Path, steps: int = SHORT_STEPS) -> dict[str, float]:
    """How long the parts of a run take on one thread, in seconds, from a few steps of it.

    Of the process' own time, so that it does not matter what else the machine does.

    Returns:
        `ready_s`: until it trains; `step_s`: of a step; `evaluate_s`: of an evaluation.
    """
    bundle = load_bundle(bundle_of(run, cache, folder))
    with bundle_modules(bundle.folder) as (model, stages):
        reference = _reference(bundle, model, stages)
        whole, test = model.build_model(), model.test_data()
        clocks = [0.0, time.process_time()]
        reference.run(1, max_steps=steps)
        clocks.append(time.process_time())
        evaluated(whole, test, model.loss)
        clocks.append(time.process_time())
    ready, stepped, tested = (after - before for before, after in pairwise(clocks))
    return {
        "ready_s": ready,
        "step_s": stepped / min(steps, run.steps_per_epoch),
        "evaluate_s": tested,
    }


def _reference(bundle: Any, model: ModuleType, stages: ModuleType) -> Reference:
    return Reference(bundle, stages, model.build_model, model.loss, model.train_data)


@torch.no_grad()
def evaluated(
    model: nn.Module, data: Dataset[Any], loss: Callable[[Tensor, Tensor], Tensor]
) -> Evaluation:
    """Loss and accuracy of an undivided model, in eval mode."""
    model.eval()
    score = Score()
    for inputs, target in DataLoader(data, EVALUATED_AT_ONCE):
        output = model(inputs)
        score.add(output, target, loss(output, target))
    return score.result()


def point(run: Run, epoch: int, seconds: float, found: Evaluation) -> dict[str, Any]:
    """An entry of a curve; `quality` is accuracy in percent, or bits per character."""
    quality = found.test_loss / math.log(2)
    if run.classifies and found.test_accuracy is not None:
        quality = 100 * found.test_accuracy
    return {
        "epoch": epoch,
        "step": epoch * run.steps_per_epoch,
        "seconds": round(seconds, 4),
        "loss": _finite(found.test_loss),
        # A model whose loss is no number has learnt nothing, whatever it guesses.
        "quality": _finite(quality) if math.isfinite(found.test_loss) else None,
    }


def _turns(reference: Reference) -> dict[str, list[dict[str, Any]]]:
    """What guards changed, with numbers that JSON has."""
    return {
        name: [
            {
                key: _finite(value) if isinstance(value, float) else value
                for key, value in row.items()
            }
            for row in rows
        ]
        for name, rows in reference.turns().items()
    }


def _means(losses: list[float], epochs: int) -> list[float]:
    """The mean training loss of every epoch."""
    each = max(1, len(losses) // epochs)
    parts = [losses[start : start + each] for start in range(0, each * epochs, each)]
    return [sum(part) / len(part) for part in parts if part]


def _finite(value: float) -> float | None:
    return round(value, 5) if math.isfinite(value) else None


def _rounded(figures: dict[str, dict[str, float]]) -> dict[str, dict[str, float | None]]:
    return {
        name: {key: _finite(value) for key, value in row.items()} for name, row in figures.items()
    }


def main(output: str, text: str, cache: str, how: str = "trained") -> None:
    """One run on one thread; a line of JSON."""
    torch.set_num_threads(1)
    run = Run.from_json(json.loads(text))
    with tempfile.TemporaryDirectory(prefix="dnic-study-") as temporary:
        program = trained if how == "trained" else timed
        told(output, lambda: program(run, Path(cache), Path(temporary) / "bundle"))


if __name__ == "__main__":
    main(*sys.argv[1:])
