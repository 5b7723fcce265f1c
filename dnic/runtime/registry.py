"""The kinds of predictors by name: those of dnic, those of installed packages, your own.

`gradient:` in plan.yaml is one of these names, or `exact` or `stale`, which predict nothing. A
kind of one's own is registered by the model file, or by a module that it imports:

    @register("mine")
    class Mine(Predictor):
        def __init__(self, request: PredictorRequest) -> None: ...

or by a package whose entry points say so:

    [project.entry-points."dnic.gradient_sources"]
    mine = "package.module:Mine"

Entry points are read when a name is asked for that is not known yet. A kind that only the model
file registers is known where that file has been imported: wherever a bundle trains.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from dnic.errors import RuntimeFault
from dnic.runtime.loss import Loss
from dnic.runtime.plan import AWAITED, HeadPlan, Size, TargetPlan, TensorSpec
from dnic.runtime.predictor import Predictor
from dnic.runtime.seeds import part_seed

if TYPE_CHECKING:
    from dnic.runtime.replicas import Replicas

ENTRY_POINTS = "dnic.gradient_sources"
_ROOM = "dnic.runtime.predictors"
# The module of each is imported when it is first asked for, and registers it.
BUILT_IN = {name: f"{_ROOM}.{name}" for name in ("synthetic", "virtual", "local")}
BUILT_IN["none"] = f"{_ROOM}.nothing"

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PredictorRequest:
    """What a predictor is built for.

    Attributes:
        tensors: the differentiable ones of an interface, as planned.
        head: what plan.yaml says under `head:`; `head.options` are the keys of the kind's own.
        target: what the targets are; None when nothing is known of them.
        loss: the model file's; None where it is not at hand (when a head is priced).
        output: planned shape of the model's output; None where it is no single tensor.
        device: where it is to run.
        seed: of its initial parameters and of everything that it draws.
        seeds: of each tensor's part; empty: they follow from `seed`.
        replicas: of the stage, over which what is learnt is to be averaged; None for no others.
        context: further tensors that `Predictor.context` holds at every step, as planned.
    """

    tensors: tuple[TensorSpec, ...]
    head: HeadPlan = field(default_factory=HeadPlan)
    target: TargetPlan | None = None
    loss: Loss | None = None
    output: tuple[Size, ...] | None = None
    device: torch.device = _CPU
    seed: int = 0
    seeds: tuple[int, ...] = ()
    replicas: Replicas | None = None
    context: tuple[TensorSpec, ...] = ()

    def seed_of(self, tensor: int) -> int:
        """The seed of the part for one tensor."""
        return self.seeds[tensor] if self.seeds else part_seed(self.seed, tensor)


Least = Callable[[HeadPlan, Sequence[TensorSpec]], float]


@dataclass(frozen=True)
class PredictorKind:
    """A kind of predictor.

    Attributes:
        name: as `gradient:` says it.
        build: makes one.
        needs_gradients, warms_up, needs_target, replicated, least_explained, least_at_first: as
            `Predictor` says.
        options: keys of its own that `head:` may hold, and their defaults.
    """

    name: str
    build: Callable[[PredictorRequest], Predictor]
    needs_gradients: bool = True
    warms_up: bool = True
    needs_target: bool = True
    replicated: bool = False
    least_explained: Least = Predictor.least_explained
    least_at_first: Least = Predictor.least_at_first
    options: Mapping[str, Any] = field(default_factory=lambda: MappingProxyType({}))

    def options_of(self, head: HeadPlan) -> dict[str, Any]:
        """The options of a head, defaults filled in.

        Raises:
            RuntimeFault: a key is not one of this kind's.
        """
        for key in head.options:
            if key not in self.options:
                close = get_close_matches(key, self.options, 1)
                raise RuntimeFault(
                    f"the gradient source {self.name} has no option {key!r}",
                    where="plan.yaml: interfaces: head",
                    expected=", ".join(self.options) or "no further keys",
                    hint=close[0] if close else None,
                )
        return {**self.options, **head.options}


Builder = TypeVar("Builder", bound=Callable[[PredictorRequest], Predictor])
_kinds: dict[str, PredictorKind] = {}


def register(
    name: str,
    *,
    needs_gradients: bool | None = None,
    warms_up: bool | None = None,
    needs_target: bool | None = None,
    replicated: bool | None = None,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Builder], Builder]:
    """Registers a predictor's class, or a function that builds one, under a name.

    A module that is imported twice registers twice; the last one holds.

    Args:
        name: for `gradient:` in specs and plans.
        needs_gradients, warms_up, needs_target, replicated: None: what the class says.
        options: keys of its own that `head:` may hold, and their defaults.

    Raises:
        RuntimeFault: the name is one of dnic's, or no name.
    """
    if not is_name(name) or name in AWAITED:
        raise RuntimeFault(
            f"no gradient source can be called {name!r}",
            expected="letters, digits and _, and neither exact, stale nor auto",
        )

    def keep(build: Builder) -> Builder:
        if name in BUILT_IN and getattr(build, "__module__", "") != BUILT_IN[name]:
            raise RuntimeFault(
                f"the gradient source {name} is dnic's own", hint="register yours by another name"
            )

        def said(given: bool | None, key: str) -> bool:
            return bool(getattr(build, key, getattr(Predictor, key))) if given is None else given

        _kinds[name] = PredictorKind(
            name,
            build,
            said(needs_gradients, "needs_gradients"),
            said(warms_up, "warms_up"),
            said(needs_target, "needs_target"),
            said(replicated, "replicated"),
            getattr(build, "least_explained", Predictor.least_explained),
            getattr(build, "least_at_first", Predictor.least_at_first),
            MappingProxyType(dict(options)),
        )
        return build

    return keep


def predictor_kind(name: str) -> PredictorKind:
    """The kind of that name.

    Raises:
        RuntimeFault: there is none; names the nearest.
    """
    if name not in _kinds:
        _load(name)
    if name not in _kinds:
        known = predictor_names()
        close = get_close_matches(name, known, 1)
        hint = "a source of your own is registered by the model file, or by a module it imports"
        raise RuntimeFault(
            f"there is no gradient source {name!r}",
            where="plan.yaml: interfaces: gradient",
            expected=", ".join([*known, *AWAITED[:2]]),
            hint=f"{close[0]}?" if close else hint,
        )
    return _kinds[name]


def predictor_names() -> tuple[str, ...]:
    """All names that are known here: dnic's, those of installed packages, those registered."""
    found = entry_points(group=ENTRY_POINTS).names
    return tuple(dict.fromkeys([*BUILT_IN, *sorted(found), *_kinds]))


def is_name(name: object) -> bool:
    """Whether something has the form of a source's name."""
    return isinstance(name, str) and name.isidentifier() and name != "auto"


def _load(name: str) -> None:
    """Imports what may register a name."""
    if name in BUILT_IN:
        importlib.import_module(BUILT_IN[name])
        return
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        try:
            found = entry.load()
        except Exception as error:  # whatever a foreign module raises
            raise RuntimeFault(
                f"the gradient source {name} cannot be imported: {error}", where=entry.value
            ) from error
        # A module registers itself; a class or a function is registered here.
        if name not in _kinds and callable(found):
            register(name)(found)
