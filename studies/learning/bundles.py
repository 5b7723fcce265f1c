"""The bundles of the study: each model is compiled once, and its plan edited as a user edits it.

Compiling asks for the cuts, so nothing is decided but names and shapes. What a run differs in
stands under `train` and in the interfaces of `plan.yaml`. One key more is edited: `weights: seed`,
so that every seed has initial weights of its own.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from dnic.errors import DnicError
from dnic.runtime.bundle import PLAN_FILE, read_plan
from dnic.runtime.plan import Plan
from studies.learning.links import LINKS
from studies.learning.runs import BATCH, Run, cuts
from studies.learning.sources import SOURCES, source_at

MODELS = Path(__file__).parent / "models"
# Units of a head's hidden layer, or channels where maps cross.
HIDDEN_WIDTH = {"connected": 64, "convolutional": 32, "residual": 32, "characters": 128}
# Of a tail's hidden layer.
TAIL_WIDTH = {"connected": 256, "convolutional": 128, "residual": 128, "characters": 256}


class Unable(DnicError):
    """This dnic cannot run what the study asks for."""

    kind = "study error"


def bundle_of(run: Run, cache: Path, folder: Path) -> Path:
    """Writes the bundle of a run.

    Args:
        run: what is to be run; its environment is set here and stays set.
        cache: where compiled bundles are kept; several processes may use it at a time.
        folder: where the run's own one is written; must not exist.

    Raises:
        Unable: this dnic has no such source or option.
    """
    os.environ.update(run.environment)
    shutil.copytree(_compiled(run, cache), folder)
    path = folder / PLAN_FILE
    content = yaml.safe_load(path.read_text("utf-8"))
    edit(content, run)
    path.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    check(_read(path, run), run)
    return folder


def _compiled(run: Run, cache: Path) -> Path:
    words = (run.data, run.model, run.layers, run.width, run.stages, run.link, run.samples)
    compiled = cache / "-".join(map(str, (*words, run.epoch_steps)))
    with _alone(compiled.with_suffix(".lock")):
        if not compiled.exists():
            # Most runs find their model compiled; the compiler alone takes seconds to import.
            from dnic.compiler import compile_model

            compile_model(spec_of(run), compiled)
    return compiled


def spec_of(run: Run) -> Any:
    """The spec of a run's model: the cuts, the link, everything else as it comes."""
    from dnic.spec import spec_from_mapping

    devices: dict[str, Any] = {"count": run.stages, "costs": "analytic"}
    link = LINKS[run.link].spec
    if link is not None:
        devices["links"] = {"default": dict(link)}
    return spec_from_mapping(
        {
            "model": {"file": str(MODELS / f"{run.model}.py")},
            "train": {"batch_size": BATCH[run.model], "optimizer": {"name": "AdamW"}},
            "devices": devices,
            "partition": {"schedule": "decoupled", "cuts": cuts(run)},
        },
        "studies.learning",
    )


def edit(content: dict[str, Any], run: Run) -> None:
    """Edits the content of a `plan.yaml` for a run."""
    content["model"]["weights"] = "seed"
    train = content["train"]
    train["epochs"], train["seed"] = run.epochs, run.seed
    train["optimizer"] = {"name": "AdamW", "options": {"lr": run.lr}}
    # Down to nearly nothing at the end: what is compared is where a source leads to, not the noise
    # of its last step.
    cosine = {"name": "CosineAnnealingLR", "options": {"T_max": run.epochs}}
    train["scheduler"] = cosine | {"interval": "epoch"}
    if run.update_probability < 1:
        train["update_probability"] = run.update_probability
    for interface in content["interfaces"]:
        here = source_at(run.source, run.stages - 1 - interface["to"])
        edit_interface(interface, replace(run, source=here))


def edit_interface(interface: dict[str, Any], run: Run) -> None:
    """Edits one interface of a `plan.yaml` for a run."""
    source = SOURCES[run.source]
    interface["gradient"] = source.gradient
    interface["head"] = head_of(run)
    interface["return_every"] = int(source.returns)
    interface["message"] = "float32"
    interface["warmup_steps"] = "auto" if run.warmup_steps is None else run.warmup_steps
    interface["guard"] = {} if run.guard else False
    for key in ("predict_weights", "warmup"):
        interface.pop(key, None)
    interface.update(source.interface)
    interface["window"] = run.window


def head_of(run: Run) -> dict[str, Any] | None:
    """The `head` of `plan.yaml`."""
    head = dict(SOURCES[run.source].head)
    widths = {"hidden": HIDDEN_WIDTH, "tail": TAIL_WIDTH}
    if head.get("width") in widths:
        head["width"] = widths[head["width"]][run.model]
    return head or None


def check(plan: Plan, run: Run) -> None:
    """Refuses a run of which the runtime would silently leave out a part.

    The reader of `plan.yaml` passes over keys that it does not know: a dnic without sparse updates
    or a guard would train on as if nothing had been asked for.

    Raises:
        Unable: names what is missing.
    """
    source, interface = SOURCES[run.source], plan.interfaces[-1]
    asked: list[tuple[str, bool, Any]] = [
        ("train.update_probability", run.update_probability < 1, plan.train),
        ("interfaces.guard", run.guard, interface),
        *((f"interfaces.{key}", True, interface) for key in source.interface),
    ]
    for key, wanted, part in asked:
        if wanted and not hasattr(part, key.rpartition(".")[2]):
            raise Unable(f"this dnic reads no {key} from plan.yaml", where=run.key)
    if "task" in source.head and "task" not in getattr(interface.head, "options", {}):
        raise Unable(f"this dnic reads no options of {source.gradient} heads", where=run.key)


def _read(path: Path, run: Run) -> Plan:
    try:
        return read_plan(path)
    except DnicError as error:
        raise Unable(error.problem, where=run.key, expected=error.expected) from error


def run_folder(run: Run) -> str:
    """A name for a run's folder."""
    return re.sub(r"[^a-z0-9.=-]+", "_", run.key)


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Holds a lock that other processes wait for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
