"""Checkpoints: every process writes its part, the whole appears at once or not at all.

torch's distributed checkpoint (DCP) writes the files. Model entries lie in it under their original
names (`model.<name>`), so that one process can read them all; what belongs to one process
(optimizer, heads, random numbers) under `stage<rank>.`. Of the replicas of a stage the first writes
what is the same in all; where each holds a part of the model, every one writes its own, and the
entry is whole all the same. DCP loads into tensors that exist already; here they are
made from the checkpoint's own metadata, so that an optimizer needs no warm start.

A checkpoint folder also holds `dnic.json`: where the run stood. DCP's metadata file is a pickle:
load only checkpoints that you trust. Several machines need a folder that all of them see. What lies
on a GPU is written from there and read into main memory first; what is copied into a module or an
optimizer goes to its device, so a run on the CPU can go on with a GPU's checkpoint.

DCP takes seconds to import, so it is imported where it is used.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.chunks import held_stages
from dnic.runtime.options import WHOLE
from dnic.runtime.sharding import fill, is_part, local

if TYPE_CHECKING:
    from dnic.runtime.plan import Mode
    from dnic.runtime.worker import Worker

STATUS_FILE = "dnic.json"
CHECKPOINTS = "checkpoints"
KEPT = 2
_MODEL = "model."
_SKELETON = "skeleton"


@dataclass(frozen=True)
class Status:
    """Where the run of a checkpoint stood.

    Attributes:
        epoch, step: done so far.
        mode: of the run.
        seed: of the run.
        processes: how many there were.
        plan: digest of the plan's structure.
        tied: further names of the model's entries: name to the name that is stored.
        shard: whether the optimizer's state lies in parts.
    """

    epoch: int
    step: int
    mode: str
    seed: int
    processes: int
    plan: str
    tied: dict[str, str]
    shard: bool = False


def save(
    worker: Worker, epoch: int, step: int, module: nn.Module, state: Mapping[str, Any]
) -> Path:
    """Writes `checkpoints/epoch-NNNN` in the run's folder; all processes must call it.

    It is written under another name and renamed at the end; of the older ones the last is kept.

    Args:
        worker: this process.
        epoch: epochs done.
        step: steps done.
        module: this process's part of the model.
        state: everything else to remember; dictionaries, lists and tuples of tensors and plain
            values, nested as they come.
    """
    from torch.distributed.checkpoint.state_dict_saver import save as dcp_save

    rank, held = worker.place.rank, worker.written
    parent = worker.options.out / CHECKPOINTS
    final = parent / f"epoch-{epoch:04d}"
    temporary = parent / f".{final.name}"
    copy = rank != _kept_by(worker)
    entries = {
        _MODEL + name: tensor
        for name, tensor in worker.names.state(module, *held).items()
        if not copy or is_part(tensor)
    }
    own = dict(state)
    if not copy:
        own["buffers"] = worker.names.private(module, *held)
    skeleton = _split(own, f"stage{rank}.", entries)
    entries[f"stage{rank}.{_SKELETON}"] = _as_bytes(skeleton)
    with _one_process_is_fine():
        dcp_save(entries, checkpoint_id=temporary, no_dist=worker.place.world_size == 1)
    if rank == 0:
        status = Status(
            epoch,
            step,
            worker.options.mode,
            worker.seed,
            worker.place.world_size,
            worker.bundle.plan.digest,
            dict(worker.names.tied),
            worker.sharded,
        )
        text = json.dumps(vars(status), indent=1) + "\n"
        (temporary / STATUS_FILE).write_text(text, encoding="utf-8")
        if final.exists():
            shutil.rmtree(final)
        temporary.rename(final)
        for old in sorted(parent.glob("epoch-*"))[:-KEPT]:
            shutil.rmtree(old)
    return final


def restore(worker: Worker, folder: Path, module: nn.Module) -> dict[str, Any]:
    """Reads this process's part of a checkpoint into its module; returns the rest of its state.

    Raises:
        RuntimeFault: the folder is no checkpoint, or one of another bundle.
    """
    folder = find_checkpoint(folder)
    status = read_status(folder)
    if status.plan != worker.bundle.plan.digest or status.processes != worker.place.world_size:
        raise RuntimeFault(
            f"the checkpoint is of another bundle, or of {status.processes} processes",
            where=str(folder),
            expected=f"one of this bundle with {worker.place.world_size} processes",
        )
    if (status.mode in WHOLE) != (not worker.staged):
        raise RuntimeFault(
            f"the checkpoint is of --mode {status.mode}",
            where=str(folder),
            expected="one of the undivided model" if not worker.staged else "one of stages",
            hint="dnic export gives its weights to another run",
        )
    if status.shard != worker.sharded:
        raise RuntimeFault(
            "the checkpoint is of a run with "
            + ("replicas in parts" if status.shard else "whole replicas"),
            where=str(folder),
            expected=f"shard: {str(status.shard).lower()} in plan.yaml, as there",
            hint="dnic export gives its weights to another run",
        )
    stages, place = len(worker.bundle.plan.stages), worker.place
    written = held_stages(cast("Mode", status.mode), stages, place.stages, place.stage)
    if worker.staged and written != worker.held:
        raise RuntimeFault(
            f"the checkpoint is of --mode {status.mode}, which deals the stages out otherwise",
            where=str(folder),
            expected=f"one of --mode {worker.options.mode}",
            hint="dnic export gives its weights to another run",
        )
    held = worker.held
    prefixes = tuple(f"stage{number}." for number in sorted({_kept_by(worker), place.rank}))
    names = worker.names.state(module, *held) | worker.names.borrowed(module, *held)
    tensors = _load(
        folder, lambda key: key.startswith(prefixes) or key.removeprefix(_MODEL) in names
    )
    state: dict[str, Any] = {}
    for prefix in prefixes:
        state |= _joined(_from_bytes(tensors[prefix + _SKELETON]), tensors)
    with torch.no_grad():
        for name, entry in names.items():
            fill(entry, tensors[_MODEL + name])
        for name, buffer in worker.names.private(module, *held).items():
            kept = state["buffers"][name].to(buffer.device)
            if not torch.equal(buffer, kept):  # a constant may be a view that cannot be written
                buffer.copy_(kept)
    return state


def load_full_state_dict(folder: Path) -> dict[str, Tensor]:
    """The original model's `state_dict()` from a checkpoint, in one process.

    Args:
        folder: a checkpoint, or the folder of a run, whose newest checkpoint is taken.

    Returns:
        Parameters and persistent buffers under the model's own names, on the CPU;
        `load_state_dict(strict=True)` of the user's model takes them.

    Raises:
        RuntimeFault: the folder is no checkpoint.
    """
    folder = find_checkpoint(folder)
    status = read_status(folder)
    tensors = _load(folder, lambda key: key.startswith(_MODEL))
    state = {key.removeprefix(_MODEL): tensor for key, tensor in tensors.items()}
    for name, kept in status.tied.items():
        state[name] = state[kept]
    return state


def clear_unfinished(run_dir: Path) -> None:
    """Removes what an earlier run that was ended in the middle of writing has left."""
    for folder in (run_dir / CHECKPOINTS).glob(".epoch-*"):
        shutil.rmtree(folder)


def find_checkpoint(folder: Path) -> Path:
    """The checkpoint itself, given it or the folder of a run (then the newest one).

    Raises:
        RuntimeFault: there is none.
    """
    if (folder / STATUS_FILE).is_file():
        return folder
    inside = folder if folder.name == CHECKPOINTS else folder / CHECKPOINTS
    found = [path for path in sorted(inside.glob("epoch-*")) if (path / STATUS_FILE).is_file()]
    if not found:
        raise RuntimeFault(
            "there is no checkpoint here",
            where=str(folder),
            expected=f"a folder with {STATUS_FILE}, or a run with {CHECKPOINTS}/epoch-NNNN",
        )
    return found[-1]


def read_status(folder: Path) -> Status:
    """Where the run of a checkpoint stood.

    Raises:
        RuntimeFault: `dnic.json` is missing or damaged.
    """
    path = folder / STATUS_FILE
    try:
        return Status(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise RuntimeFault(f"cannot be read: {error}", where=str(path)) from error


def _kept_by(worker: Worker) -> int:
    """The process that writes what is the same in all that have the same part of the model."""
    return 0 if worker.replicated else worker.place.rank - worker.place.replica


def _load(folder: Path, wanted: Callable[[str], bool]) -> dict[str, Tensor]:
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystemReader
    from torch.distributed.checkpoint.metadata import TensorStorageMetadata
    from torch.distributed.checkpoint.state_dict_loader import load as dcp_load

    try:
        metadata = FileSystemReader(folder).read_metadata()
        tensors = {
            key: torch.empty(entry.size, dtype=entry.properties.dtype)
            for key, entry in metadata.state_dict_metadata.items()
            if isinstance(entry, TensorStorageMetadata) and wanted(key)
        }
        with _one_process_is_fine():
            dcp_load(tensors, checkpoint_id=folder, no_dist=True)
    except (OSError, CheckpointException) as error:
        raise RuntimeFault(f"the checkpoint is damaged: {error}", where=str(folder)) from error
    return tensors


def _split(tree: Any, prefix: str, tensors: dict[str, Tensor]) -> Any:
    """The tree with every tensor replaced by a reference; the tensors go to `tensors`."""
    if isinstance(tree, Tensor):
        key = f"{prefix}{len(tensors)}"
        tensors[key] = local(tree.detach())
        return {"__tensor__": key}
    if isinstance(tree, Mapping):
        return {"__items__": [(key, _split(part, prefix, tensors)) for key, part in tree.items()]}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_split(part, prefix, tensors) for part in tree)
    return tree


def _joined(tree: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of `_split`."""
    if isinstance(tree, dict):
        if "__tensor__" in tree:
            return tensors[tree["__tensor__"]]
        return {key: _joined(part, tensors) for key, part in tree["__items__"]}
    if isinstance(tree, (tuple, list)):
        return type(tree)(_joined(part, tensors) for part in tree)
    return tree


def _as_bytes(skeleton: Any) -> Tensor:
    buffer = io.BytesIO()
    torch.save(skeleton, buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def _from_bytes(tensor: Tensor) -> Any:
    return torch.load(io.BytesIO(tensor.numpy().tobytes()), weights_only=True)


@contextmanager
def _one_process_is_fine() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield
