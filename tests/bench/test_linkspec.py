"""What `dnic bench --link` takes."""

from __future__ import annotations

import pytest

from dnic.bench.linkspec import LinkSpec, parse_link
from dnic.errors import SpecError

INF = float("inf")


@pytest.mark.parametrize(
    ("text", "link"),
    [
        ("delay=20ms,rate=1gbit", LinkSpec(20_000.0, 125e6, "delay=20ms,rate=1gbit")),
        ("rate=100mbit, delay=5ms", LinkSpec(5_000.0, 12.5e6, "rate=100mbit,delay=5ms")),
        ("delay=0s", LinkSpec(0.0, INF, "delay=0s")),
        ("rate=2GB/s", LinkSpec(0.0, 2e9, "rate=2GB/s")),
    ],
)
def test_links(text: str, link: LinkSpec) -> None:
    assert parse_link(text) == link


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("dely=20ms", ["a link has no 'dely=20ms'", "delay and rate", "try:      delay"]),
        ("20ms", ["'20ms' is no setting", "such as delay=20ms,rate=1gbit"]),
        ("", ["'' is no setting"]),
        ("delay=20", ["delay cannot be '20'", "ns, us, ms, s", "delay=20us"]),
        ("delay=1ms,rate=fast", ["rate cannot be 'fast'", "Gbit/s"]),
        ("rate=0gbit", ["rate cannot be '0gbit'", "a positive number"]),
        ("delay=1ms,delay=2ms", ["delay is given twice"]),
    ],
)
def test_what_is_no_link_is_refused(text: str, words: list[str]) -> None:
    with pytest.raises(SpecError) as caught:
        parse_link(text)
    assert "--link" in str(caught.value)
    for word in words:
        assert word in str(caught.value)
