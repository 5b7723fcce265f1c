"""What sources of gradients need: true gradients, and how many come back; targets; one process."""

from __future__ import annotations

from dnic.cost.head_parts import Source
from dnic.errors import DnicError


def needs_gradients(source: Source) -> bool:
    """Whether true gradients must come back to a source; also where nobody knows the source."""
    from dnic.runtime.plan import AWAITED
    from dnic.runtime.registry import predictor_kind

    if source in AWAITED:
        return True
    try:
        return predictor_kind(source).needs_gradients
    except DnicError:
        return True


def needs_target(source: Source) -> bool:
    """Whether a source cannot do without targets; not where nobody knows the source."""
    from dnic.runtime.plan import AWAITED
    from dnic.runtime.registry import predictor_kind

    if source in AWAITED:
        return False
    try:
        return predictor_kind(source).needs_target
    except DnicError:
        return False


def learns_in_replicas(source: Source) -> bool:
    """Whether replicas of a stage can have a source; also where nobody knows the source yet."""
    from dnic.runtime.plan import AWAITED
    from dnic.runtime.registry import predictor_kind

    if source in AWAITED:
        return True
    try:
        return predictor_kind(source).replicated
    except DnicError:
        return True


def returned_share(return_every: int) -> float:
    """Part of all gradients that come back; none where `return_every` is 0."""
    return 1 / return_every if return_every else 0.0
