"""The base class of the stages in an emitted `stages.py`.

A stage takes parts of the user's own model and keeps them under their original dotted names, so
that its `state_dict()` keys are the model's own and a checkpoint of all stages is a checkpoint of
the model. `torch.fx`'s `split_module` flattens names, and `torch.distributed.pipelining` copies
shared parameters; here a module or parameter that the model shares stays one object.

A module that is only partly taken becomes a plain container: its children keep their paths, but
its own `forward` and hooks are gone. That is what the generator wants: it opened that module.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.plan import SharedPlan


class Container(nn.Module):
    """Stands where a partly taken module stood; children by attribute, index or key."""

    def __getitem__(self, key: int | str) -> nn.Module | Tensor:
        child: nn.Module | Tensor = getattr(self, str(key))
        return child

    def __len__(self) -> int:
        return len(self._modules)

    def __contains__(self, key: str) -> bool:
        return key in self._modules


class Stage(nn.Module):
    """One stage of a model: some of its submodules, parameters and buffers, and a `forward`.

    Args:
        source: the user's whole model. Its parts are taken, not copied.
        names: dotted paths of the submodules, parameters, buffers and plain tensor attributes that
            the stage holds. A path that lies inside another one is skipped.

    Raises:
        RuntimeFault: the model has no such part.
    """

    def __init__(self, source: nn.Module, *names: str) -> None:
        super().__init__()
        taken = set(names)
        for name in names:
            if not any(prefix in taken for prefix in _prefixes(name)):
                self._take(source, name)
        self._fixed = _fixed_modes(source, self)
        self.train(source.training)

    def __getitem__(self, key: int | str) -> nn.Module | Tensor:
        """A part by index or key: the model may itself be an `nn.Sequential`."""
        part: nn.Module | Tensor = getattr(self, str(key))
        return part

    def train(self, mode: bool = True) -> Stage:
        """Sets the mode of every module, but for those that the model's own `train` leaves alone.

        Models freeze a backbone by overriding `train` so that its BatchNorm stays in eval mode.
        """
        super().train(mode)
        for module, training in self._fixed[mode]:
            module.training = training
        return self

    def _take(self, source: nn.Module, name: str) -> None:
        *path, leaf = name.split(".")
        holder: nn.Module = self
        owner = source
        for part in path:
            owner = _child(owner, part, name)
            if part not in holder._modules:
                holder.add_module(part, Container())
            holder = _child(holder, part, name)
        if leaf in owner._modules:
            holder.add_module(leaf, owner._modules[leaf])
        elif leaf in owner._parameters:
            holder.register_parameter(leaf, owner._parameters[leaf])
        elif leaf in owner._buffers:
            persistent = leaf not in owner._non_persistent_buffers_set
            holder.register_buffer(leaf, owner._buffers[leaf], persistent=persistent)
        elif isinstance(getattr(owner, leaf, None), Tensor):
            # Unlike in the user's model it is registered, so that it follows `.to(device)`.
            holder.register_buffer(leaf, getattr(owner, leaf), persistent=False)
        else:
            raise _missing(name)


def _fixed_modes(source: nn.Module, stage: nn.Module) -> dict[bool, list[tuple[nn.Module, bool]]]:
    """For each mode the modules of a stage that the model's own `train(mode)` sets otherwise."""
    before = [(module, module.training) for module in source.modules()]
    held = set(stage.modules())
    fixed = {}
    for mode in (True, False):
        source.train(mode)
        fixed[mode] = [(m, m.training) for m, _ in before if m in held and m.training != mode]
    for module, training in before:
        module.training = training
    return fixed


def check_ownership(stages: Sequence[nn.Module], shared: Sequence[SharedPlan] = ()) -> None:
    """Refuses stages that share a parameter of which the plan does not know.

    Each would train a copy of its own.

    Args:
        stages: all stages of one model.
        shared: the parameters that several stages may hold.

    Raises:
        RuntimeFault: names the parameter and both stages.
    """
    rows = {name: row for row in shared for name in row.names}
    held: dict[nn.Parameter, dict[int, str]] = {}
    for index, stage in enumerate(stages):
        for name, parameter in stage.named_parameters():
            held.setdefault(parameter, {}).setdefault(index, name)
    confirmed = set()
    for names in held.values():
        (first, name), *others = names.items()
        row = rows.get(name)
        if row is not None and tuple(names) == (row.owner, *row.holders):
            confirmed.add(row.name)
        elif others:
            index, name = others[0]
            raise RuntimeFault(
                f"the parameter {name} is in stage {first} and in stage {index}",
                where="stages.py",
                expected="every parameter in one stage, or listed under `shared` in plan.yaml",
                hint="keep_together in the spec's `partition` joins the modules that share it",
            )
    for row in shared:
        if row.name not in confirmed:
            stages_text = ", ".join(str(stage) for stage in (row.owner, *row.holders))
            raise RuntimeFault(
                f"the parameter {row.name} is not in the stages {stages_text}, as planned",
                where="plan.yaml: shared",
                hint="dnic compile --plan plan.yaml writes the generated files anew",
            )


def _prefixes(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[:end]) for end in range(1, len(parts))]


def _child(owner: nn.Module, part: str, name: str) -> nn.Module:
    child = owner._modules.get(part)
    if child is None:
        raise _missing(name)
    return child


def _missing(name: str) -> RuntimeFault:
    return RuntimeFault(
        f"the model has no module, parameter or buffer {name}",
        where="model.py",
        expected="the model that was compiled",
        hint="dnic compile model.py",
    )
