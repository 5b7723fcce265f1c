"""The learning-rate scheduler: a `torch.optim.lr_scheduler` class by name, and its arguments.

Like the optimizer it is checked when the spec is read: against the signature of the class, and by
making it once, for the spec's optimizer over a tiny parameter. `SequentialLR` and
`ChainedScheduler` join others, which are given as a list of such mappings. Schedulers that are made
of functions (`LambdaLR`) cannot be written in YAML; `train.py` may pass one.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, get_args

import torch
from pydantic import ConfigDict, Field, model_validator
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from dnic.spec.expect import complaint, expected, shown
from dnic.spec.nearest import nearest
from dnic.spec.section import Section

SCHEDULERS: dict[str, type[LRScheduler]] = {
    name: member
    for name, member in vars(lr_scheduler).items()
    if inspect.isclass(member)
    and issubclass(member, LRScheduler)
    and not name.startswith("_")
    and member is not LRScheduler
}

_GIVEN_BY_US = ("optimizer", "last_epoch")
_JOINED = "schedulers"

Interval = Literal["step", "epoch"]


class SchedulerSpec(Section):
    """Which `torch.optim.lr_scheduler` class moves the learning rate; other keys are arguments."""

    model_config = ConfigDict(extra="allow")

    name: Annotated[str, expected("the name of a class of torch.optim.lr_scheduler")] = Field(
        default="", description="a class of torch.optim.lr_scheduler; its arguments go beside it"
    )
    interval: Annotated[Interval, expected("step or epoch", get_args(Interval))] = Field(
        default="epoch", description="it is stepped after every step, or every epoch"
    )

    @property
    def options(self) -> dict[str, Any]:
        """The keyword arguments of the class; schedulers that it joins by `name` and `options`."""
        return _options(self.model_extra or {})

    def make(self, optimizer: torch.optim.Optimizer) -> LRScheduler:
        """The scheduler for an optimizer."""
        return _made(self.name, self.options, optimizer)

    @model_validator(mode="after")
    def _known_to_torch(self) -> Self:
        _check(self.name, self.model_extra or {}, ())
        if self.name == "ReduceLROnPlateau" and self.interval == "step":
            raise complaint(
                "{} cannot be step with ReduceLROnPlateau, which follows evaluations",
                expected="epoch",
                at=("interval",),
            )
        return self

    def check_with(self, optimizer: torch.optim.Optimizer) -> None:
        """Makes the scheduler once.

        Raises:
            PydanticCustomError: torch refuses it.
        """
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.make(optimizer)
        # torch refuses bad values with errors of many types, some from plain arithmetic.
        except Exception as error:
            told = str(error).removeprefix(f"{self.name}.__init__() ")
            raise complaint(
                f"{{}} is refused by torch.optim.lr_scheduler.{self.name}: {told}",
                expected="arguments that the scheduler accepts for this optimizer",
                at=("scheduler",),
            ) from error


def _check(name: object, given: Mapping[str, Any], at: tuple[str | int, ...]) -> None:
    """Checks a scheduler's name and arguments, and those of the schedulers that it joins."""
    kind = _class_named(name, at)
    parameters = inspect.signature(kind).parameters
    allowed = [
        key
        for key, parameter in parameters.items()
        if key not in _GIVEN_BY_US and "Callable" not in str(parameter.annotation)
    ]
    for key, value in given.items():
        if key not in allowed:
            raise complaint(
                "unknown key {}",
                expected=f"an argument of torch.optim.lr_scheduler.{name}: {', '.join(allowed)}",
                hint=nearest(key, ["name", "interval", *allowed]) or "",
                at=(*at, key),
            )
        if key == _JOINED:
            _check_joined(value, (*at, key))
        else:
            _check_value(value, str(parameters[key].annotation), (*at, key))


def _class_named(name: object, at: tuple[str | int, ...]) -> type[LRScheduler]:
    usable = sorted(n for n, kind in SCHEDULERS.items() if not _needs_function(kind))
    among = f"a class of torch.optim.lr_scheduler: {', '.join(usable)}"
    if name == "":
        raise complaint("{} is missing", expected=among, at=(*at, "name"))
    if not isinstance(name, str) or name not in SCHEDULERS:
        hint = nearest(name, usable) if isinstance(name, str) else None
        raise complaint(
            f"{{}} cannot be {shown(name)}", expected=among, hint=hint or "", at=(*at, "name")
        )
    if name not in usable:
        raise complaint(
            f"{{}} is {name}, which is made of functions and cannot be written here",
            expected=among,
            hint="train.py may pass one: worker.trainer(..., scheduler=...)",
            at=(*at, "name"),
        )
    return SCHEDULERS[name]


def _needs_function(kind: type[LRScheduler]) -> bool:
    return any(
        "Callable" in str(parameter.annotation) and parameter.default is inspect.Parameter.empty
        for parameter in inspect.signature(kind).parameters.values()
    )


def _check_joined(value: object, at: tuple[str | int, ...]) -> None:
    if not isinstance(value, list | tuple) or not value:
        raise complaint(
            f"{{}} cannot be {shown(value)}",
            expected="a list of schedulers: [{name: LinearLR, total_iters: 5}, ...]",
            at=at,
        )
    for index, entry in enumerate(value):
        if not isinstance(entry, Mapping):
            raise complaint(
                f"{{}} cannot be {shown(entry)}",
                expected="a scheduler: {name: LinearLR, total_iters: 5}",
                at=(*at, index),
            )
        rest = {key: part for key, part in entry.items() if key != "name"}
        _check(entry.get("name", ""), rest, (*at, index))


def _check_value(value: object, annotation: str, at: tuple[str | int, ...]) -> None:
    """Refuse a value whose type is not in the annotation; torch would compute with it."""
    if isinstance(value, list | tuple):
        if any(word in annotation for word in ("list[", "Iterable[", "Sequence[")):
            for index, entry in enumerate(value):
                _check_value(entry, annotation.split("[")[-1], (*at, index))
            return
    elif _fits(value, annotation):
        return
    raise complaint(f"{{}} cannot be {shown(value)}", expected=_meant(annotation), at=at)


def _fits(value: object, annotation: str) -> bool:
    if value is None:
        return "None" in annotation
    if isinstance(value, str):
        return value in _words(annotation)
    if isinstance(value, bool):
        return "bool" in annotation
    if isinstance(value, int | float) and abs(value) < 2**63:
        return "float" in annotation or (isinstance(value, int) and "int" in annotation)
    return False


def _words(annotation: str) -> list[str]:
    """The words of a `Literal`."""
    return re.findall(r"""['"](\w+)['"]""", annotation) if "Literal" in annotation else []


def _meant(annotation: str) -> str:
    words = ", ".join(_words(annotation))
    found = [text for word, text in _MEANT.items() if word in annotation]
    return f"one of {words}" if words else " or ".join(found)


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    options: dict[str, Any] = {}
    for key, value in given.items():
        if key == _JOINED:
            options[key] = [
                {
                    "name": entry["name"],
                    "options": _options({k: v for k, v in entry.items() if k != "name"}),
                }
                for entry in value
            ]
        else:
            options[key] = list(value) if isinstance(value, tuple) else value
    return options


def _made(name: str, options: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> LRScheduler:
    given = dict(options)
    if _JOINED in given:
        given[_JOINED] = [_made(row["name"], row["options"], optimizer) for row in given[_JOINED]]
    return SCHEDULERS[name](optimizer=optimizer, **given)


_MEANT = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "None": "null",
    "list[": "a list of such",
    "Iterable[": "a list of such",
}
