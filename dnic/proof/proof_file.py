"""`proof.json`: what has been proven of a bundle, kept beside it.

Written with rung 1 when the bundle is compiled, and again by `dnic verify` with every rung. It
names the files that it speaks of by their SHA-256 sums and holds no date and no path of the
machine, so that the same bundle on the same machine gives the same bytes. It is a record, not a
seal: whoever can edit the bundle can edit it too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dnic import __version__
from dnic.errors import VerifyError
from dnic.partition.plan import Plan
from dnic.proof.rung import Rung, ladder
from dnic.trace.crosscheck import CrossCheck

PROOF_FILE = "proof.json"


def proof_file(rungs: Sequence[Rung], plan: Plan, capture: CrossCheck | None = None) -> bytes:
    """The content of `proof.json`.

    Args:
        rungs: those that were tried, in order.
        plan: of the bundle; its `files` say what was proven.
        capture: the second opinion on the capture; None where it was not asked for.
    """
    content = {
        "dnic": __version__,
        "torch": str(torch.__version__),
        "model": plan.model.name,
        "stages": len(plan.stages),
        "files": dict(sorted(plan.files.items())),
        **ladder(rungs),
        "capture": None if capture is None else capture.as_dict(),
    }
    return json.dumps(content, indent=2, allow_nan=False, ensure_ascii=False).encode() + b"\n"


def write_proof(folder: Path, content: bytes) -> None:
    """Put `proof.json` into a bundle, whole or not at all.

    Raises:
        OSError: the folder cannot be written to.
    """
    temporary = folder / f".{PROOF_FILE}.{os.getpid()}"
    try:
        temporary.write_bytes(content)
        temporary.replace(folder / PROOF_FILE)
    finally:
        temporary.unlink(missing_ok=True)


def read_proof(folder: Path) -> dict[str, Any]:
    """The content of a bundle's `proof.json`.

    Raises:
        VerifyError: there is none, or it is not what dnic writes.
    """
    path = folder / PROOF_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise VerifyError(
            "nothing is known to be proven of this bundle",
            where=str(path),
            hint=f"dnic verify {folder} proves it and writes this file",
        ) from None
    except (OSError, ValueError) as error:
        raise VerifyError(f"the proof cannot be read: {error}", where=str(path)) from error
    if not isinstance(content, dict) or not isinstance(content.get("rungs"), dict):
        raise VerifyError(
            "this is no proof",
            where=str(path),
            expected="rungs, passed and capture, as dnic writes them",
            hint=f"dnic verify {folder} writes it anew",
        )
    return content
