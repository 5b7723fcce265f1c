"""A link as it is typed: `delay=20ms,rate=1gbit`.

The words are those of `tc netem`, which people know. What netem can do beside that, such as losing
packets or varying delays, is not offered.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic_core import PydanticCustomError

from dnic.errors import SpecError
from dnic.spec.nearest import nearest
from dnic.spec.units import bandwidth_bytes_per_s, time_us

_READERS = {"delay": time_us, "rate": bandwidth_bytes_per_s}
_USUAL = "such as delay=20ms,rate=1gbit"


@dataclass(frozen=True)
class LinkSpec:
    """One direction of a link; the other is like it.

    Attributes:
        delay_us: one way.
        rate_bytes_per_s: inf for none to speak of.
        text: as it was typed.
    """

    delay_us: float = 0.0
    rate_bytes_per_s: float = float("inf")
    text: str = ""


def parse_link(text: str) -> LinkSpec:
    """Read `delay=20ms,rate=1gbit`; either may be left out.

    Raises:
        SpecError: a key or a quantity is none.
    """
    found: dict[str, float] = {}
    for part in text.split(","):
        key, equals, value = (word.strip() for word in part.partition("="))
        if key not in _READERS or not equals:
            raise SpecError(
                f"a link has no {part.strip()!r}" if equals else f"{part.strip()!r} is no setting",
                where="--link",
                expected=f"delay and rate, {_USUAL}",
                hint=nearest(key, _READERS),
            )
        if key in found:
            raise SpecError(f"{key} is given twice", where="--link", expected=_USUAL)
        found[key] = _quantity(key, value)
    return LinkSpec(found.get("delay", 0.0), found.get("rate", float("inf")), text.replace(" ", ""))


def _quantity(key: str, value: str) -> float:
    try:
        return _READERS[key](value)
    except PydanticCustomError as error:
        told = error.context or {}
        raise SpecError(
            str(told["sentence"]).replace("{}", key, 1),
            where="--link",
            expected=told["expected"],
            hint=f"{key}={told['hint']}" if told["hint"] else None,
        ) from None
