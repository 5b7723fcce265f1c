"""Lines of emitted code: short enough to read, broken where a formatter would break them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

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


def call_parts(text: str) -> tuple[str, list[str]]:
    """The function and the arguments of a statement that ends in a call; no arguments else."""
    depth, start, quoted = 0, 0, False
    ends: list[int] = []
    for i, char in enumerate(text):
        if char == '"' and text[i - 1] != "\\":
            quoted = not quoted
        elif quoted:
            continue
        elif char in "([{":
            if depth == 0:
                start, ends = i, []
            depth += 1
        elif char in ")]}":
            depth -= 1
        elif char == "," and depth == 1:
            ends.append(i)
    if not text.endswith(")") or text[start] != "(" or start == 0 or not _is_name(text[start - 1]):
        return text, []
    cuts = [start, *ends, len(text) - 1]
    parts = [text[a + 1 : b].strip() for a, b in pairwise(cuts)]
    return text[:start], [part for part in parts if part]


def _is_name(char: str) -> bool:
    return char.isalnum() or char in "_]"
