"""Write a bundle: every file into a folder beside the final one, prove it, then rename.

Nothing is half-written: until the proof has passed, the folder that the user named is untouched. A
bundle that is replaced keeps its `runs/`, where checkpoints lie.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import safetensors.torch
from torch import Tensor, nn

from dnic.codegen.planfile import plan_text
from dnic.codegen.stages import stages_source
from dnic.codegen.train import train_source
from dnic.errors import SpecError
from dnic.partition.plan import Plan
from dnic.runtime.bundle import structure_digest
from dnic.trace import TracedModel

RUNS = "runs"
# Files that the plan must match; train.py is the user's to edit.
SEALED = ("stages.py", "model.py", "init.safetensors")


def bundle_files(
    traced: TracedModel,
    plan: Plan,
    model_source: bytes,
    beside: Mapping[str, bytes] = MappingProxyType({}),
) -> dict[str, bytes]:
    """Name and content of every file but the pictures.

    Args:
        traced: the coarse capture.
        plan: as decided; its `files` are filled in here.
        model_source: the user's model file.
        beside: files that it imports from its own folder.
    """
    digest = structure_digest(plan.model_dump(mode="json", by_alias=True))
    files = {
        "stages.py": stages_source(traced, plan, digest).encode(),
        "model.py": model_source,
        **beside,
    }
    if plan.model.weights == "file":
        # One entry only: safetensors writes several in an order that changes from run to run.
        state = initial_state(traced.module)
        files["init.safetensors"] = safetensors.torch.save(state, {"format": "pt"})
    sums = {
        name: hashlib.sha256(files[name]).hexdigest()
        for name in (*SEALED, *beside)
        if name in files
    }
    sealed = plan.model_copy(update={"files": sums})
    files["plan.yaml"] = plan_text(sealed).encode()
    files["train.py"] = train_source(sealed).encode()
    return files


def initial_state(model: nn.Module) -> dict[str, Tensor]:
    """The model's state under its own names; a tensor with several names under the first."""
    state: dict[str, Tensor] = {}
    seen: set[tuple[int, int, tuple[int, ...]]] = set()
    for name, tensor in model.state_dict().items():
        key = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tuple(tensor.shape))
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        state[name] = tensor.detach().cpu().contiguous().clone()
    return state


def check_target(folder: Path, *, force: bool) -> None:
    """Refuse to write where something lies that is not ours to replace.

    Raises:
        SpecError: the folder exists and `force` is not set, or it is no bundle.
    """
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not (folder / "plan.yaml").is_file():
        raise SpecError(
            f"{folder} exists and is not a bundle",
            where="-o",
            expected="a new folder, an empty one, or a bundle with --force",
        )
    if not force:
        raise SpecError(
            f"{folder} exists",
            where="-o",
            expected="a new folder",
            hint="--force replaces the bundle; its runs/ stay",
        )


@contextmanager
def staged(folder: Path, files: Mapping[str, bytes]) -> Iterator[Path]:
    """A temporary folder with the files; becomes `folder` when the block ends without an error."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        temporary.chmod(0o755)
        for name, content in files.items():
            (temporary / name).write_bytes(content)
        yield temporary
        _replace(folder, temporary)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(folder: Path, temporary: Path) -> None:
    if not folder.exists():
        temporary.rename(folder)
        return
    if (folder / RUNS).is_dir():
        (folder / RUNS).rename(temporary / RUNS)
    old = Path(tempfile.mkdtemp(prefix=f".{folder.name}.old.", dir=folder.parent))
    folder.rename(old / folder.name)
    temporary.rename(folder)
    shutil.rmtree(old)
