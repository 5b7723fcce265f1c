"""Sizes, counts and times as people read them: three significant digits and a unit.

`rich.filesize` picks the unit; it writes a fixed number of decimals, which gives `1.0` beside
`117.9`. Here every figure in a column has the same precision instead.
"""

from __future__ import annotations

from rich.filesize import pick_unit_and_suffix

NO_BREAK_SPACE = "\N{NO-BREAK SPACE}"


def size(nbytes: float) -> str:
    """Bytes, in powers of 1024: `12.3 KiB`."""
    return _scaled(nbytes, ["B", "KiB", "MiB", "GiB", "TiB", "PiB"], 1024)


def count(number: float) -> str:
    """A number of things, such as parameters: `118 k`."""
    return _scaled(number, ["", "k", "M", "G", "T", "P"], 1000)


def flops(operations: float) -> str:
    """Floating point operations: `1.20 GFLOP`."""
    return _scaled(operations, [prefix + "FLOP" for prefix in ("", "k", "M", "G", "T", "P")], 1000)


def time(microseconds: float) -> str:
    """A duration: `3.20 ms`."""
    if microseconds >= 60e6:
        return f"{_digits(microseconds / 60e6)}{NO_BREAK_SPACE}min"
    return _scaled(microseconds, ["µs", "ms", "s"], 1000)


def share(part: float) -> str:
    """A part of one as per cent: `24 %`."""
    return f"{100 * part:.0f}{NO_BREAK_SPACE}%"


def _scaled(value: float, units: list[str], base: int) -> str:
    # Rounded before the unit is chosen: 999 999 µs is 1.00 s, not 1000 ms.
    rounded = float(f"{value:.3g}") if base == 1000 else value
    unit, name = pick_unit_and_suffix(int(rounded), units, base)
    digits = f"{rounded:.0f}" if rounded == int(rounded) < base else _digits(rounded / unit)
    return f"{digits}{NO_BREAK_SPACE}{name}" if name else digits


def _digits(value: float) -> str:
    if value >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"
