"""Several stages in one process as one module, whose names are the model's own.

`nn.ModuleList` would put a number before every name; an optimizer, a checkpoint or an export would
no longer find the model's entries. Here the trees of the stages are laid over one another: a part
that one stage holds stands where the model has it, one that several hold (an activation without
parameters) stands there once. It is called stage by stage, never as a whole.

Not handled: a parameter that two stages share, which pipelines refuse.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from dnic.runtime.stage import Container


class HeldStages(nn.Module):
    """The stages of a process.

    Args:
        stages: by number, on their device. Their parts are taken, not copied.
    """

    def __init__(self, stages: Mapping[int, nn.Module]) -> None:
        super().__init__()
        # A mapping, which `nn.Module` does not register: the parts are what it registers.
        self._stages_by_number = dict(stages)
        for stage in stages.values():
            _overlay(self, stage)

    def __getitem__(self, key: int | str) -> nn.Module | Tensor:
        """A part by index or key, as the model has it."""
        part: nn.Module | Tensor = getattr(self, str(key))
        return part

    def train(self, mode: bool = True) -> HeldStages:
        """Sets the mode of every stage, each of which knows what keeps its own."""
        self.training = mode
        for stage in self._stages_by_number.values():
            stage.train(mode)
        return self


def stages_in(module: nn.Module, held: tuple[int, ...]) -> dict[int, nn.Module]:
    """The stages of a process by number, whether it holds one or several.

    Args:
        module: what `worker.build` returned.
        held: the numbers of its stages.
    """
    if isinstance(module, HeldStages):
        return dict(module._stages_by_number)
    return {held[0]: module}


def _overlay(target: nn.Module, source: nn.Module) -> None:
    """Registers a tree's parts in another one, at the same paths."""
    for name, parameter in source._parameters.items():
        target._parameters.setdefault(name, parameter)
    for name, buffer in source._buffers.items():
        if name not in target._buffers:
            target._buffers[name] = buffer
            if name in source._non_persistent_buffers_set:
                target._non_persistent_buffers_set.add(name)
    for name, child in source._modules.items():
        if child is None:
            continue
        there = target._modules.get(name)
        if isinstance(child, Container):
            if there is None:
                there = target._modules[name] = Container()
            # A whole module that stands there has these parts already.
            if isinstance(there, Container):
                _overlay(there, child)
        else:
            target._modules[name] = child
