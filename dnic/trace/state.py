"""What a forward may leave behind in a model: buffers, modes, attributes; put back afterwards."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from dnic.trace.recording import PLAIN

_OWN = frozenset({"training", "_parameters", "_buffers", "_modules"})


class Attributes:
    """The attributes of every module of a model, as they are now, hooks and caches included."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = [
            (path, module, dict(vars(module)), dict(module._buffers))
            for path, module in model.named_modules()
        ]
        # What is in lists, sets and dictionaries, such as the dictionaries of hooks.
        self._contents = [
            (value, value.copy())
            for _, _, own, _ in self._before
            for value in own.values()
            if isinstance(value, dict | list | set)
        ]

    def changed(self, paths: Collection[str]) -> list[tuple[str, str]]:
        """Plain values and tensors that these modules now hold otherwise, as (path, name)."""
        found = []
        for path, module, own, buffers in self._before:
            if path not in paths:
                continue
            now = {**vars(module), **module._buffers}
            for name, value in now.items():
                before = (buffers if name in module._buffers else own).get(name, _MISSING)
                if name not in _OWN and _differs(value, before):
                    found.append((path, name))
        return found

    def put_back(self) -> None:
        """Bind every attribute and buffer as it was."""
        for _, module, own, buffers in self._before:
            vars(module).clear()
            vars(module).update(own)
            module._buffers.clear()
            module._buffers.update(buffers)
        for value, content in self._contents:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)


_MISSING = object()


def _differs(value: Any, before: Any) -> bool:
    if value is before:
        return False
    if isinstance(value, Tensor):
        return True
    if type(value) in PLAIN:
        return not (type(before) is type(value) and (value == before or value != value))
    return False


@contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put attributes, the values of buffers and the mode of every module back afterwards."""
    attributes = Attributes(model)
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield
    finally:
        attributes.put_back()
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
        for module, training in modes:
            module.training = training
