"""Where a spec came from: the file and the line of every key in it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from dnic.spec.expect import shown

KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Origin:
    """Where a mapping came from.

    Attributes:
        name: of the file, or of the command-line option.
        lines: line of each key and list entry by its path, from 1; empty when there is no file.
    """

    name: str
    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """Line of the key at `path` or, where it was not written, of the nearest key around it."""
        ends = range(len(path), 0, -1)
        return next((self.lines[path[:end]] for end in ends if path[:end] in self.lines), 0)

    def where(self, path: KeyPath) -> str:
        """`file:line`, or the name alone."""
        line = self.line(path)
        return f"{self.name}:{line}" if line else self.name


def dotted(path: KeyPath) -> str:
    """`train.optimizer.betas[1]`; a key that is no plain word stands in quotes."""
    text = ""
    for key in path:
        if isinstance(key, int):
            text += f"[{key}]"
        else:
            text += "." * bool(text) + (key if re.fullmatch(r"[\w-]+", key) else shown(key))
    return text
