"""The guard of an interface, as planned."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from dnic.partition.part import Part


class PlannedGuard(Part):
    """When an interface does without its head.

    Attributes:
        check_every: learnt batches of one check.
        patience: failed checks in a row after which the head is not used.
        retry_after: steps until it is tried again; twice as many every further time.
        minimum: part of the true gradient's variance that it must explain more than.
        fallback: `exact` waits for the true gradient, `none` goes on with the gradient zero.
    """

    check_every: int = Field(default=50, ge=1)
    patience: int = Field(default=3, ge=1)
    retry_after: int = Field(default=500, ge=1)
    minimum: float = Field(default=0.0, lt=1, allow_inf_nan=False)
    fallback: Literal["exact", "none"] = "exact"


DEFAULT_GUARD = PlannedGuard()
