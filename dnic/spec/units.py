"""Quantities with units: bandwidth, time and memory.

pydantic's `ByteSize` reads memory sizes, but neither bandwidth nor time with the units of network
and hardware data sheets. A bare number is refused everywhere: 25 of what? As on data sheets, `B`
is bytes and `b` is bits, decimal prefixes count in thousands whatever their case, and `Ki`, `Mi`,
`Gi`, `Ti` in 1024s. Sums and expressions are not read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from math import inf, isfinite
from typing import Annotated

from pydantic import (
    BeforeValidator,
    ByteSize,
    PlainSerializer,
    TypeAdapter,
    ValidationError,
    WithJsonSchema,
)

from dnic.spec.expect import complaint, shown
from dnic.spec.nearest import nearest

_QUANTITY = re.compile(r"\s*([0-9]+(?:\.[0-9]*)?(?:[eE][-+]?[0-9]+)?|\.[0-9]+)\s*(.*?)\s*")

_DECIMAL = {
    "": 1.0,
    "k": 1e3,
    "K": 1e3,
    "m": 1e6,
    "M": 1e6,
    "g": 1e9,
    "G": 1e9,
    "t": 1e12,
    "T": 1e12,
}
_BINARY = {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40}
_BITS = ("b/s", "bit/s", "bit", "bps")

BANDWIDTH_UNITS: Mapping[str, float] = {
    **{p + unit: f for p, f in {**_DECIMAL, **_BINARY}.items() for unit in ("B/s", "Bps")},
    **{p + unit: f / 8 for p, f in {**_DECIMAL, **_BINARY}.items() for unit in _BITS},
}
TIME_UNITS: Mapping[str, float] = {
    "ns": 1e-3,
    "us": 1.0,
    "\N{MICRO SIGN}s": 1.0,
    "\N{GREEK SMALL LETTER MU}s": 1.0,
    "ms": 1e3,
    "s": 1e6,
}

_KNOWN_BANDWIDTHS = (
    "B/s, KB/s, MB/s, GB/s, TB/s, KiB/s, MiB/s, GiB/s, TiB/s, bit/s, kbit/s, Mbit/s, Gbit/s, Tbit/s"
)
_KNOWN_TIMES = "ns, us, ms, s"
_KNOWN_SIZES = "B, KB, MB, GB, TB, KiB, MiB, GiB, TiB"


def _quantity(value: object, units: Mapping[str, float]) -> float | None:
    """The number times its unit; None when `value` is not a number with one of the units."""
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[2] not in units:
        return None
    amount = float(match[1]) * units[match[2]]
    return amount if isfinite(amount) else None


def _suggestion(value: object, units: Iterable[str], usual: str) -> str:
    """`value` with the nearest unit, or with the usual one when it has none."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < inf:
        return f"{value:g}{usual}" if value < 1e6 else ""
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        return ""
    unit = nearest(match[2], units) if match[2] else usual
    return f"{match[1]}{unit}" if unit and unit != match[2] else ""


def bandwidth_bytes_per_s(value: object) -> float:
    """Bytes per second of a text such as `25GB/s`, `800MiB/s` or `10 Gbit/s`."""
    amount = _quantity(value, BANDWIDTH_UNITS)
    if not amount:
        raise complaint(
            f"{{}} cannot be {shown(value)}",
            expected=f"a positive number with a unit: {_KNOWN_BANDWIDTHS}",
            hint=_suggestion(value, _KNOWN_BANDWIDTHS.split(", "), "GB/s"),
        )
    return amount


def time_us(value: object) -> float:
    """Microseconds of a text such as `10us`, `1.5ms` or `0s`."""
    amount = _quantity(value, TIME_UNITS)
    if amount is None:
        raise complaint(
            f"{{}} cannot be {shown(value)}",
            expected=f"a number with a unit: {_KNOWN_TIMES}",
            hint=_suggestion(value, _KNOWN_TIMES.split(", "), "us"),
        )
    return amount


def memory_bytes(value: object) -> ByteSize | None:
    """Bytes of a text such as `80GiB`; None, for "ask the device", of `auto` and of nothing."""
    if value is None or isinstance(value, ByteSize):
        return value
    if value == "auto":
        return None
    size = _size(value)
    if not size:
        raise complaint(
            f"{{}} cannot be {shown(value)}",
            expected=f"a positive number with a unit ({_KNOWN_SIZES}), or auto",
            hint=nearest(value, ["auto"]) or _suggestion(value, _KNOWN_SIZES.split(", "), "GiB"),
        )
    return size


def _size(value: object) -> ByteSize | None:
    match = _QUANTITY.fullmatch(value) if isinstance(value, str) else None
    if match is None or not match[2]:
        return None
    try:
        return _BYTES.validate_python(value)
    except (ValidationError, OverflowError):
        return None


def text_of_bandwidth(bytes_per_s: float) -> str:
    """The shortest text that `bandwidth_bytes_per_s` reads back as the same number."""
    return _text(
        bytes_per_s, {p: f for p, f in _DECIMAL.items() if p in ("", "K", "M", "G")}, "B/s"
    )


def text_of_time(microseconds: float) -> str:
    """A text that `time_us` reads back as the same number."""
    return f"{_plain(microseconds)}us"


def text_of_memory(size: int | None) -> str:
    """The shortest text that `memory_bytes` reads back as the same number of bytes."""
    if size is None:
        return "auto"
    factors = {unit: int(ByteSize.byte_sizes[unit.lower()]) for unit in _KNOWN_SIZES.split(", ")}
    return min((f"{size // f}{u}" for u, f in factors.items() if size % f == 0), key=len)


def _plain(number: float) -> str:
    return repr(number).removesuffix(".0")


def _text(amount: float, factors: Mapping[str, float], unit: str) -> str:
    texts = (f"{_plain(amount / f)}{p}{unit}" for p, f in factors.items())
    return min((t for t in texts if _quantity(t, BANDWIDTH_UNITS) == amount), key=len)


_BYTES = TypeAdapter(ByteSize)

Bandwidth = Annotated[
    float,
    BeforeValidator(bandwidth_bytes_per_s),
    PlainSerializer(text_of_bandwidth, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["25GB/s", "10Gbit/s"]}),
]
Time = Annotated[
    float,
    BeforeValidator(time_us),
    PlainSerializer(text_of_time, when_used="json"),
    WithJsonSchema({"type": "string", "examples": ["10us"]}),
]
Memory = Annotated[
    ByteSize | None,
    BeforeValidator(memory_bytes),
    PlainSerializer(text_of_memory, when_used="json"),
    WithJsonSchema({"type": ["string", "null"], "examples": ["80GiB", "auto"]}),
]
