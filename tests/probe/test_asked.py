"""What a person types for a probe."""

from __future__ import annotations

import pytest

from dnic.errors import SpecError
from dnic.probe.asked import LATENESSES, MOST_CUTS, Asked, asked_of
from dnic.probe.predictors import SOURCES


def test_nothing_typed_is_the_defaults() -> None:
    assert asked_of() == Asked(200, None, MOST_CUTS, SOURCES, LATENESSES, None, 2**30)


def test_what_is_typed() -> None:
    assert asked_of(cuts="8").most_cuts == 8
    assert asked_of(cuts="layers.0, layers.2").cuts == ("layers.0", "layers.2")
    assert asked_of(every=True).most_cuts is None
    assert asked_of(sources="stale,none").sources == ("stale", "none")
    assert asked_of(lateness="16, 2,2").latenesses == (2, 16)
    assert asked_of(memory_gib=0.5).memory_bytes == 2**29


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        ({"sources": "synthetik"}, ["'synthetik'", "--sources", "try:      synthetic"]),
        ({"sources": "stale,,"}, ["is no list", "--sources"]),
        ({"lateness": "1,x"}, ["'1,x'", "--lateness", "such as 1,4,16"]),
        ({"lateness": "0"}, ["'0'", "at least 1"]),
        ({"cuts": "0"}, ["no cut", "--cuts"]),
        ({"cuts": ""}, ["is no list", "--cuts"]),
        ({"cuts": "4", "every": True}, ["--all and --cuts contradict"]),
    ],
)
def test_what_cannot_be_asked(typed: dict[str, object], says: list[str]) -> None:
    with pytest.raises(SpecError) as refused:
        asked_of(**typed)  # type: ignore[arg-type]
    assert all(text in str(refused.value) for text in says)
