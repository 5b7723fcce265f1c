"""A checkpoint back to one `state_dict` of the original model."""

from __future__ import annotations

import tempfile
from pathlib import Path

import safetensors.torch
import torch

from dnic.codegen.planfile import read_plan_file
from dnic.errors import SpecError
from dnic.runtime import load_full_state_dict
from dnic.runtime.checkpoint import find_checkpoint


def export_checkpoint(bundle: Path, checkpoint: Path, output: Path) -> int:
    """Write the model's parameters and buffers under their original names.

    Args:
        bundle: the bundle that wrote the checkpoint.
        checkpoint: a checkpoint, or the folder of a run, whose newest is taken.
        output: `.safetensors`, or `.pt` for `torch.save`.

    Returns:
        The number of tensors written. Tied parameters stand under each of their names, so that
        `load_state_dict(strict=True)` of the user's own model accepts the file.

    Raises:
        RuntimeFault: there is no checkpoint.
        SpecError: the bundle is none, or the output's suffix is not known.
    """
    read_plan_file(bundle)
    if output.suffix not in (".safetensors", ".pt"):
        raise SpecError(
            f"cannot export to {output.name}", where="-o", expected=".safetensors or .pt"
        )
    if not output.resolve().parent.is_dir():
        raise SpecError(f"there is no folder {output.resolve().parent}", where="-o")
    state = load_full_state_dict(find_checkpoint(checkpoint))
    with tempfile.TemporaryDirectory(dir=output.resolve().parent, prefix=".export-") as folder:
        file = Path(folder) / output.name
        if output.suffix == ".pt":
            torch.save(state, file)
        else:
            safetensors.torch.save_file({k: t.contiguous().clone() for k, t in state.items()}, file)
        file.replace(output)
    return len(state)
