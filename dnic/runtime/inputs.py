"""How one batch is handed to the model, and where in it the tensors lie that the stages take.

A batch is a tuple (positional arguments) or a mapping (keyword arguments) of tensors nested in
tuples, lists and mappings. The stages take single tensors; the plan knows each one's path. Samples
are pairs of (input, target), or mappings that hold both. `torch.utils._pytree` would walk such
structures too, but takes a mapping that it does not know, such as a tokenizer's, for one leaf.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.links import dtype_named
from dnic.runtime.plan import InputSpec, Key, Path, SamplePlan, resolve

Batch = tuple[Any, Tensor]
Constants = Sequence[tuple[Path, Any]]

_SAME_INPUTS = "samples with the same inputs as example_inputs() gives"


class Inputs:
    """What the model takes of every sample.

    Args:
        plan: where the tensors lie and what else the model is given.
    """

    def __init__(self, plan: SamplePlan) -> None:
        self._plan = plan
        self._specs = plan.inputs
        specs = plan.inputs or ()
        # The model takes one mapping as its argument, rather than keywords.
        self._positional = not specs or isinstance(specs[0].path[0], int)
        place = 1 if self._positional else 0
        self._wanted = {spec.path[place] for spec in specs if len(spec.path) > place}
        self._known: set[Key] = {path[0] for path, _ in plan.constants if path}
        self._known.update(spec.path[0] for spec in specs)

    def split(self, sample: Any) -> Batch:
        """What the model takes (a tuple or a mapping) and the targets of a batch of samples.

        The targets are empty, `[B, 0]`, where the plan knows none.

        Raises:
            RuntimeFault: it is neither a pair nor a mapping, or an entry is missing.
        """
        if isinstance(sample, Mapping):
            self._need_names()
            return self._split_mapping(sample, self._specs or ())
        if not isinstance(sample, (tuple, list)) or len(sample) != 2:
            raise RuntimeFault(
                "a sample of the data set is not a pair",
                where="model.py",
                expected="(input, target), several inputs as a tuple or a mapping; or one mapping",
            )
        given, target = sample
        if isinstance(given, Mapping):
            self._need_names()
            batch: Any = (given,) if self._positional else given
        else:
            batch = tuple(given) if isinstance(given, (tuple, list)) else (given,)
        self._refuse_unknown(batch)
        return batch, _checked_target(target)

    def take(self, batch: Any, batch_size: int) -> list[Tensor]:
        """The tensors that the first stage takes, in the order of its `forward`.

        Args:
            batch: what `split` returned.
            batch_size: samples in it.

        Raises:
            RuntimeFault: one is missing, no tensor, or not as in the plan.
        """
        if self._specs is None:
            return list(batch)
        return [_checked(spec, leaf(batch, spec.path), batch_size) for spec in self._specs]

    def call(self, model: nn.Module, batch: Any, device: torch.device) -> Any:
        """The undivided model's output for a batch."""
        return invoke(model, moved(batch, device), self._plan.constants)

    def _need_names(self) -> None:
        if not self._specs:
            raise RuntimeFault(
                "the samples are mappings, but plan.yaml has no names for the model's inputs",
                where="plan.yaml: model: inputs",
                hint="dnic compile model.py",
            )

    def _split_mapping(self, sample: Mapping[str, Any], specs: Sequence[InputSpec]) -> Batch:
        entries = {key: value for key, value in sample.items() if key in self._wanted}
        batch: Any = (entries,) if self._positional else entries
        name = self._plan.target
        if name is not None:
            if name not in sample:
                raise RuntimeFault(
                    f"a sample has no {name!r}, which holds the targets",
                    where="model.py",
                    expected=f"an entry {name!r} beside {', '.join(map(str, sample))}",
                )
            return batch, _checked_target(sample[name])
        first = leaf(batch, specs[0].path)
        return batch, torch.empty(first.shape[0] if isinstance(first, Tensor) else 0, 0)

    def _refuse_unknown(self, batch: Any) -> None:
        """An entry that the capture has not seen would reach the whole model but not the stages."""
        if self._specs is None:
            return
        keys: set[Key] = set(batch) if isinstance(batch, Mapping) else set(range(len(batch)))
        unknown = [key for key in keys if key not in self._known]
        if unknown:
            raise RuntimeFault(
                f"a batch has an entry more: {path_text((min(unknown, key=str),))}",
                where="model.py",
                expected=_SAME_INPUTS,
            )


def leaf(batch: Any, path: Path) -> Any:
    """The entry of a batch at a path such as `("input_ids",)` or `(0, "mask")`.

    Raises:
        RuntimeFault: the batch has no such entry.
    """
    value = batch
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            raise RuntimeFault(
                f"a batch has no {path_text(path)}", where="model.py", expected=_SAME_INPUTS
            ) from None
    return value


def invoke(model: nn.Module, batch: Any, constants: Constants = ()) -> Any:
    """Call a model on a batch.

    Args:
        model: any module.
        batch: a tuple of positional arguments or a mapping of keyword arguments.
        constants: plain arguments that no sample carries, by their path (`use_cache: False`);
            entries of the batch win.
    """
    if isinstance(batch, Mapping):
        plain = {path[0]: value for path, value in constants if len(path) == 1}
        return model(**{str(key): value for key, value in (plain | dict(batch)).items()})
    given = list(batch)
    for path, value in sorted(constants, key=lambda constant: str(constant[0])):
        if len(path) == 1 and path[0] == len(given):
            given.append(value)
    return model(*given)


def moved(value: Any, device: torch.device) -> Any:
    """A batch with every tensor on a device; mappings become dictionaries."""
    if isinstance(value, Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, Mapping):
        return {key: moved(entry, device) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(moved(entry, device) for entry in value))
    if isinstance(value, (tuple, list)):
        return type(value)(moved(entry, device) for entry in value)
    return value


def path_text(path: Path) -> str:
    """`input_ids`, `image["mask"]`, `input 0`."""
    first, *rest = path
    text = first if isinstance(first, str) else f"input {first}"
    return text + "".join(f"[{key!r}]" for key in rest)


def _checked(spec: InputSpec, value: Any, batch_size: int) -> Tensor:
    if not isinstance(value, Tensor):
        raise RuntimeFault(
            f"{path_text(spec.path)} of a batch is {type(value).__name__}, not a tensor",
            where="model.py",
            expected=_SAME_INPUTS,
        )
    if spec.dtype is not None and value.dtype != dtype_named(spec.dtype):
        raise RuntimeFault(
            f"{path_text(spec.path)} of a batch is {str(value.dtype).removeprefix('torch.')}",
            where="model.py",
            expected=f"{spec.dtype}, as in example_inputs()",
        )
    if spec.shape is not None:
        shape = resolve(spec.shape, batch_size)
        if value.shape != shape:
            raise RuntimeFault(
                f"{path_text(spec.path)} of a batch has the shape {list(value.shape)}",
                where="model.py",
                expected=f"{list(shape)} for {batch_size} samples, as in example_inputs()",
            )
    return value


def _checked_target(target: Any) -> Tensor:
    if not isinstance(target, Tensor) or target.dim() == 0:
        raise RuntimeFault(
            f"the targets of a batch are {type(target).__name__}, not a tensor",
            where="model.py",
            expected="a number or a tensor of one shape as every sample's target",
        )
    return target
