"""The optimizer: a `torch.optim` class by name and its keyword arguments.

torch checks the arguments only when the optimizer is made, which in a bundle is on every rank after
the model is loaded. Here they are checked when the spec is read: against the signature of the
class, and by making the optimizer once for a tiny parameter. What depends on the model is not
checked: `Muon` takes matrices only and `SparseAdam` sparse gradients only.
"""

from __future__ import annotations

import inspect
import warnings
from typing import Annotated, Any, Self

import torch
from pydantic import AfterValidator, ConfigDict, Field, model_validator

from dnic.spec.expect import Rate, complaint, expected, shown
from dnic.spec.nearest import nearest
from dnic.spec.section import Section

OPTIMIZERS: dict[str, type[torch.optim.Optimizer]] = {
    name: member
    for name, member in vars(torch.optim).items()
    if inspect.isclass(member)
    and issubclass(member, torch.optim.Optimizer)
    and member is not torch.optim.Optimizer
}


def _known(name: str) -> str:
    usable = sorted(n for n, c in OPTIMIZERS.items() if not _needs_closure(c))
    if name not in OPTIMIZERS:
        raise complaint(
            f"{{}} cannot be {shown(name)}",
            expected=f"a class of torch.optim: {', '.join(usable)}",
            hint=nearest(name, usable) or "",
        )
    if name not in usable:
        raise complaint(
            f"{{}} is {name}, which is not available: it runs the model again in each step",
            expected=f"a class of torch.optim: {', '.join(usable)}",
        )
    return name


def _needs_closure(optimizer: type[torch.optim.Optimizer]) -> bool:
    closure = inspect.signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is inspect.Parameter.empty


def _scalar(value: object, key: str, *at: int) -> None:
    if isinstance(value, bool | str | None) or (
        isinstance(value, int | float) and abs(value) < 2**63
    ):
        return
    raise complaint(
        f"{{}} cannot be {shown(value)}",
        expected="a finite number, true, false, a word, or a list of these",
        at=(key, *at),
    )


OptimizerName = Annotated[
    str, expected("the name of a class of torch.optim"), AfterValidator(_known)
]


class OptimizerSpec(Section):
    """Which `torch.optim` class trains the stages; keys beyond these are its keyword arguments."""

    model_config = ConfigDict(extra="allow")

    name: OptimizerName = Field(
        default="AdamW", description="a class of torch.optim; its other arguments go beside lr"
    )
    lr: Rate = Field(default=1e-3, description="learning rate")

    @property
    def options(self) -> dict[str, Any]:
        """Every keyword argument of the class, `lr` first; lists as tuples."""
        given = {"lr": self.lr, **(self.model_extra or {})}
        return {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}

    def make(self) -> torch.optim.Optimizer:
        """The optimizer, for one tiny parameter."""
        parameter = torch.nn.Parameter(torch.zeros(1, 1))
        return OPTIMIZERS[self.name]([parameter], **self.options)

    @model_validator(mode="after")
    def _accepted_by_torch(self) -> Self:
        signature = inspect.signature(OPTIMIZERS[self.name])
        allowed = [name for name in signature.parameters if name != "params"]
        for key, value in (self.model_extra or {}).items():
            if key not in allowed:
                raise complaint(
                    "unknown key {}",
                    expected=f"an argument of torch.optim.{self.name}: {', '.join(allowed)}",
                    hint=nearest(key, ["name", *allowed]) or "",
                    at=(key,),
                )
            _check_type(key, value, str(signature.parameters[key].annotation))
        self._make_once()
        return self

    def _make_once(self) -> None:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.make()
        # torch refuses bad values with errors of many types, some from plain arithmetic.
        except Exception as error:
            raise complaint(
                f"{{}} is refused by torch.optim.{self.name}: {error}",
                expected="arguments that the optimizer accepts",
            ) from error


def _check_type(key: str, value: object, annotation: str) -> None:
    """Refuse a value whose type is not in the annotation: torch takes any word for true."""
    if isinstance(value, list | tuple):
        for index, entry in enumerate(value):
            _scalar(entry, key, index)
        fits = "tuple" in annotation
    else:
        _scalar(value, key)
        fits = _fits(value, annotation.split("tuple[")[0])
    if not fits:
        meant = [text for name, text in _MEANT.items() if name in annotation]
        raise complaint(
            f"{{}} cannot be {shown(value)}",
            expected="a list of numbers" if "tuple" in annotation else " or ".join(meant),
            at=(key,),
        )


def _fits(value: object, annotation: str) -> bool:
    if value is None:
        return "None" in annotation
    if type(value) is int:
        return "int" in annotation or "float" in annotation
    return type(value).__name__ in annotation


_MEANT = {
    "float": "a number",
    "int": "a whole number",
    "bool": "true or false",
    "str": "a word",
    "None": "null",
}
