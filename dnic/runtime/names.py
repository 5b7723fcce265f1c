"""Which stage keeps which entry of the model's `state_dict()`.

A checkpoint of all stages must load into the user's own model with `strict=True`. So every entry
of the model is written by exactly one rank: the first stage that holds it; entries that no stage
holds (the model does not use them) by the first rank; and a tensor that the model knows by
several names once, the other names being recorded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from dnic.errors import RuntimeFault

INIT_FILE = "init.safetensors"


@dataclass(frozen=True)
class StateNames:
    """The entries of a model's `state_dict()` and who keeps them.

    Attributes:
        owners: stage that writes each entry, by name; tied names appear once.
        tied: further names of entries: name to the name in `owners`.
        unused: the tensors of entries that no stage holds, kept by stage 0.
    """

    owners: Mapping[str, int]
    tied: Mapping[str, str]
    unused: Mapping[str, Tensor]

    @classmethod
    def of(cls, model: nn.Module, stages: Sequence[nn.Module]) -> StateNames:
        """Reads them off a model and the stages that were made from it."""
        whole = _entries(model)
        held: dict[str, int] = {}
        for index in reversed(range(len(stages))):
            held.update(dict.fromkeys(_entries(stages[index]), index))
        first: dict[int, str] = {}
        # Of a tensor's names that of the earliest stage counts, which owns it.
        for name in sorted(whole, key=lambda name: held.get(name, len(stages))):
            first.setdefault(id(whole[name]), name)
        tied = {name: first[id(t)] for name, t in whole.items() if first[id(t)] != name}
        owners = {name: held.get(name, 0) for name in whole if name not in tied}
        unused = {name: whole[name].detach() for name in owners if name not in held}
        return cls(owners, tied, unused)

    def state(self, stage: nn.Module, *index: int) -> dict[str, Tensor]:
        """The entries that one stage writes, or several as one module; detached, not copied."""
        state = {name: entry.detach() for name, entry in self._written(stage, index).items()}
        return state | (dict(self.unused) if 0 in index else {})

    def borrowed(self, stage: nn.Module, *index: int) -> dict[str, Tensor]:
        """The parameters that a stage holds and another one writes, by the name that this uses."""
        written = {id(entry) for entry in self._written(stage, index).values()}
        return {
            self.tied.get(name, name): parameter.detach()
            for name, parameter in stage.named_parameters()
            if id(parameter) not in written
        }

    def private(self, stage: nn.Module, *index: int) -> dict[str, Tensor]:
        """Buffers of a stage that `state` lacks: not persistent, or written by another stage.

        Without them a resumed run could differ.
        """
        written = {id(entry) for entry in self._written(stage, index).values()}
        return {
            name: buffer.detach()
            for name, buffer in stage.named_buffers()
            if id(buffer) not in written
        }

    def _written(self, stage: nn.Module, index: Sequence[int]) -> dict[str, Tensor]:
        held = _entries(stage)
        return {
            name: held[name]
            for name, owner in self.owners.items()
            if owner in index and name in held
        }


def load_initial(model: nn.Module, path: str) -> None:
    """Copies the initial parameters and buffers into a freshly built model.

    Raises:
        RuntimeFault: the file cannot be read, or holds other names or shapes than the model.
    """
    try:
        initial = load_file(path)
    except (OSError, SafetensorError) as error:
        raise RuntimeFault(f"cannot be read: {error}", where=path) from error
    own: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    own.update(model.named_buffers(remove_duplicate=False))
    loaded = set()
    with torch.no_grad():
        for name, tensor in initial.items():
            if name not in own or own[name].shape != tensor.shape:
                raise _other_model(f"{name} {list(tensor.shape)} is not in the model", path)
            own[name].copy_(tensor)
            loaded.add(id(own[name]))
    for name, entry in _entries(model).items():
        if id(entry) not in loaded:
            raise _other_model(f"{name} is missing", path)


def _entries(module: nn.Module) -> dict[str, Tensor]:
    state: dict[str, Any] = module.state_dict(keep_vars=True)
    return {name: entry for name, entry in state.items() if isinstance(entry, Tensor)}


def _other_model(problem: str, path: str) -> RuntimeFault:
    return RuntimeFault(
        f"{INIT_FILE} holds another model: {problem}",
        where=path,
        expected="the parameters and buffers of the model that was compiled",
        hint="dnic compile model.py",
    )
