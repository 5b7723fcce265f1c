"""`probe.json`: what `dnic probe` measured, read for a plan of the same model."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import ValidationError

from dnic.errors import SpecError
from dnic.graph.digest import graph_digest
from dnic.graph.graph import Graph
from dnic.partition.predictability import Predictability
from dnic.partition.probed import Probe


def read_probe(path: Path) -> Probe:
    """The probe in a file, checked.

    Raises:
        SpecError: no such file, no JSON, or not a probe; names the key.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SpecError(
            "there is no such probe",
            where=str(path),
            expected="a file that dnic probe wrote",
            hint="dnic probe MODEL.py -o probe.json",
        ) from None
    except (OSError, ValueError) as error:
        raise SpecError(f"the probe cannot be read: {error}", where=str(path)) from error
    try:
        return Probe.model_validate(content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "the file"
        raise SpecError(
            f"{key}: {first['msg']}", where=str(path), expected="a file that dnic probe wrote"
        ) from error


def write_probe(probe: Probe, path: Path) -> None:
    """Write a probe; folders on the way are made.

    Raises:
        SpecError: the file cannot be written.
    """
    text = json.dumps(probe.model_dump(mode="json"), indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise SpecError(f"cannot write {path}: {error.strerror}", where="-o") from error


def predictability_of(path: Path | None, fine: Graph) -> Predictability | None:
    """What the probe in a file says of a model; None without a file.

    Args:
        path: of the file.
        fine: the fine graph of the model that is planned.

    Raises:
        SpecError: it cannot be read, or is of another model.
    """
    if path is None:
        return None
    probe = read_probe(path)
    if probe.model.digest != graph_digest(fine):
        same = probe.model.name == fine.name
        what = f"another version of {fine.name}" if same else f"{probe.model.name}, not {fine.name}"
        raise SpecError(
            f"the probe is of {what}",
            where=str(path),
            expected="a probe of the same operations, names and shapes",
            hint="dnic probe again; its figures are of the model that it ran",
        )
    return Predictability(probe, path.name)
