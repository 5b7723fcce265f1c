"""The links of part 3, as `dnic bench --link` has them and as a spec has them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class LinkChoice:
    """A link between two processes; None for this machine's own."""

    title: str
    typed: str | None
    spec: Mapping[str, str] | None


LINKS: Mapping[str, LinkChoice] = {
    "loopback": LinkChoice("loopback", None, None),
    "20ms-1gbit": LinkChoice(
        "20 ms, 1 Gb/s", "delay=20ms,rate=1gbit", {"latency": "20ms", "bandwidth": "1Gbit/s"}
    ),
}
