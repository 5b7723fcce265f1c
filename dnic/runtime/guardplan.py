"""What a plan says of an interface's heads beside their build: when they are used, when they learn.

Read and checked here: `warmup`, `warmup_until`, `guard`, and `train_every` of the head. A plan that
does not speak of a guard has one.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields
from typing import get_args

from dnic.errors import RuntimeFault
from dnic.runtime.plan import AWAITED, Fallback, GuardPlan, InterfacePlan
from dnic.runtime.registry import BUILT_IN, is_name, predictor_kind


def read_guard(content: object) -> GuardPlan | None:
    """The key `guard` of an interface; None: no guard.

    Args:
        content: `false`, or a mapping; None where the plan says nothing.

    Raises:
        TypeError, ValueError: it is something else, or has unknown keys.
    """
    if content is False:
        return None
    if content is None or content is True:
        return GuardPlan()
    if not isinstance(content, Mapping):
        raise TypeError(f"guard cannot be {content!r}")
    known = [field.name for field in fields(GuardPlan)]
    for key in content:
        if key not in known:
            raise ValueError(f"guard has no key {key!r}, only {', '.join(known)}")
    return GuardPlan(**content)


def check_supervised(interface: InterfacePlan, where: str) -> None:
    """Checks what a hand edit can break.

    Raises:
        RuntimeFault: names the key and the values that it may take.
    """
    _check_warmup(interface, where)
    until = interface.warmup_until
    if until is not None and not (_is_number(until) and until <= 1):
        raise RuntimeFault(
            f"warmup_until cannot be {until!r}", where=where, expected="at most 1, or null"
        )
    head = interface.head
    if head is not None and head.train_every < 1:
        raise RuntimeFault(
            f"train_every {head.train_every} is too small",
            where=f"{where}: head",
            expected="1 to learn whenever a gradient comes back, 4 for every fourth",
        )
    if interface.guard is not None:
        _check_guard(interface.guard, f"{where}: guard")


def _check_warmup(interface: InterfacePlan, where: str) -> None:
    if interface.warmup == "exact":
        return
    if interface.gradient != "stale":
        raise RuntimeFault(
            f"warmup {interface.warmup!r} where the gradient is {interface.gradient}",
            where=where,
            expected="warmup: exact; only late gradients (stale) may begin with others",
        )
    name = interface.warmup
    # What the model file registers is known once that is imported.
    learns = name in BUILT_IN and predictor_kind(name).needs_gradients
    if learns or name in AWAITED or not is_name(name):
        raise no_beginning(name, where)


def no_beginning(name: str, where: str) -> RuntimeFault:
    """Late gradients cannot begin with this."""
    return RuntimeFault(
        f"warmup cannot be {name!r}",
        where=where,
        expected="exact, or what predicts without true gradients: local",
    )


def _check_guard(guard: GuardPlan, where: str) -> None:
    for key in ("check_every", "proof", "patience", "retry_after", "growth"):
        value = getattr(guard, key)
        if type(value) is not int or value < 1:
            raise RuntimeFault(f"{key} cannot be {value!r}", where=where, expected="1 or more")
    for key in ("minimum", "at_first"):
        value = getattr(guard, key)
        if value != "auto" and not (_is_number(value) and value < 1):
            raise RuntimeFault(
                f"{key} cannot be {value!r}",
                where=where,
                expected="auto, or a number below 1: the part of the variance to be explained",
            )
    fallback: str = guard.fallback
    if fallback not in get_args(Fallback):
        late = "a stage cannot become late during a run, so late gradients are no fallback"
        raise RuntimeFault(
            f"fallback {fallback!r} is not known",
            where=where,
            expected=", ".join(get_args(Fallback)),
            hint=late if fallback == "stale" else "",
        )


def _is_number(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return math.isfinite(value)
