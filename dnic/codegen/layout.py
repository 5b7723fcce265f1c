"""Lines of emitted code: short enough to read, broken where a formatter would break them."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 100


def wrapped(opening: str, parts: Sequence[str], closing: str) -> list[str]:
    """`opening` + comma-separated parts + `closing`, on one line or with the parts indented."""
    line = f"{opening}{', '.join(parts)}{closing}"
    if len(line) <= WIDTH:
        return [line]
    indent = " " * (len(opening) - len(opening.lstrip()))
    inner = f"{indent}    {', '.join(parts)}"
    if len(inner) <= WIDTH:
        return [opening, inner, f"{indent}{closing}"]
    return [opening, *(f"{indent}    {part}," for part in parts), f"{indent}{closing}"]
