"""When a head warms up, and when it is not used: the keys of `interfaces.*.guard`."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field

from dnic.spec.expect import Count, expected
from dnic.spec.section import Section

Fallback = Literal["exact", "none"]
ShareOrAuto = Annotated[
    Annotated[float, Field(strict=True, lt=1, allow_inf_nan=False)] | Literal["auto"],
    expected("auto, or a number below 1: 0.1 for a tenth of the gradient's variance", ["auto"]),
]


def _switch(value: Any) -> Any:
    """`guard: false` and `guard: true` in the words of the section."""
    return {"enabled": value} if isinstance(value, bool) else value


class GuardSpec(Section):
    """Watches over a head; `guard: false` switches it off."""

    enabled: Annotated[Annotated[bool, Field(strict=True)], expected("true or false")] = Field(
        default=True, description="guard: false switches it off"
    )
    check_every: Count = Field(default=25, description="learnt batches of one check")
    proof: Count = Field(default=2, description="passed checks in a row until it is used")
    patience: Count = Field(default=2, description="failed checks in a row until it is not used")
    retry_after: Count = Field(
        default=500, description="steps until it is tried again; twice as many each time"
    )
    minimum: ShareOrAuto = Field(
        default="auto",
        description="part of the variance to explain more than; auto: by source",
    )
    at_first: ShareOrAuto = Field(
        default="auto",
        description="the same for a head that is new; auto: by source, or minimum",
    )
    growth: Count = Field(default=16, description="the check in use from which minimum holds")
    fallback: Annotated[Fallback, expected("exact or none", get_args(Fallback))] = Field(
        default="exact", description="exact (wait) or none (no gradient)"
    )


GuardSection = Annotated[
    GuardSpec, BeforeValidator(_switch, json_schema_input_type=GuardSpec | bool)
]
