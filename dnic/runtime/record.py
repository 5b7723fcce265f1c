"""Every loss and the final parameters of a run, for comparing runs (`--record FOLDER`).

Checkpoints keep what a run needs to go on; a record keeps what a comparison needs, each process
its own part in one file: `rankN.pt`, and `copyN.pt` of processes whose part another one has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from dnic.errors import RuntimeFault


@dataclass(frozen=True)
class Record:
    """What a run computed.

    Attributes:
        losses: training loss of every step, as float64.
        parameters: the model's `state_dict()` at the end.
        heads: parameters of the heads, by `<interface>.<tensor>.<name>`.
    """

    losses: list[float]
    parameters: dict[str, Tensor]
    heads: dict[str, Tensor]


def write_record(
    folder: Path,
    rank: int,
    losses: Sequence[float],
    parameters: Mapping[str, Tensor],
    tied: Mapping[str, str],
    heads: Mapping[str, Tensor],
    *,
    copy: bool = False,
) -> None:
    """Writes one process's part of a record; `copy`: as a further replica's, not to be counted."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "losses": list(losses),
        "parameters": {name: tensor.cpu() for name, tensor in parameters.items()},
        "tied": dict(tied),
        "heads": {name: tensor.detach().cpu() for name, tensor in heads.items()},
    }
    torch.save(content, folder / f"{'copy' if copy else 'rank'}{rank}.pt")


def clear_record(folder: Path) -> None:
    """Removes an earlier record, which may be of more processes."""
    for kind in ("rank", "copy"):
        for path in folder.glob(f"{kind}*.pt"):
            path.unlink()


def read_record(folder: Path) -> Record:
    """Reads the parts of a record of all processes.

    Raises:
        RuntimeFault: the folder holds none.
    """
    paths = sorted(folder.glob("rank*.pt"))
    if not paths:
        raise RuntimeFault("there is no record here", where=str(folder), expected="rank0.pt, ...")
    record = Record([], {}, {})
    tied: dict[str, str] = {}
    for path in paths:
        content = torch.load(path, weights_only=True)
        record.losses.extend(content["losses"])
        record.parameters.update(content["parameters"])
        record.heads.update(content["heads"])
        tied.update(content["tied"])
    for name, kept in tied.items():
        record.parameters[name] = record.parameters[kept]
    return record
