"""How long the passes of the compiler take."""

from __future__ import annotations

import time
from typing import Any


class PassClock:
    """Adds up how long the passes of the compiler take; it is told when one has ended."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.last = time.perf_counter()

    def __call__(self, name: str, value: Any) -> None:
        """A pass has ended."""
        now = time.perf_counter()
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self.last
        self.last = now

    def total(self, names: tuple[str, ...]) -> float:
        """Seconds of these passes."""
        return round(sum(self.seconds.get(name, 0.0) for name in names), 3)
