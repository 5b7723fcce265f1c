"""The guard of an interface, as planned."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from dnic.partition.part import Part

Share = Annotated[float, Field(lt=1, allow_inf_nan=False)]


class PlannedGuard(Part):
    """When an interface does without its head.

    Attributes:
        check_every: learnt batches of one check.
        proof: checks in a row that it must pass before it is used.
        patience: checks in a row that it must fail, in use, before it is not used any more; one
            is enough if it is the first.
        retry_after: steps until it is tried again; twice as many every further time.
        minimum: part of the true gradient's variance that it must explain more than; `auto` is
            what its source asks for, and the more the more interfaces are predicted further up.
        at_first: the same while it is not used yet, or not for long; `auto` is what its source
            asks for, or `minimum` where that is a number.
        growth: the check in use from which on `minimum` holds.
        fallback: `exact` waits for the true gradient, `none` goes on with the gradient zero.
    """

    check_every: int = Field(default=25, ge=1)
    proof: int = Field(default=2, ge=1)
    patience: int = Field(default=2, ge=1)
    retry_after: int = Field(default=500, ge=1)
    minimum: Share | Literal["auto"] = "auto"
    at_first: Share | Literal["auto"] = "auto"
    growth: int = Field(default=16, ge=1)
    fallback: Literal["exact", "none"] = "exact"


DEFAULT_GUARD = PlannedGuard()
