"""Strategies and small parts that the tests of the schedule model share."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from dnic.cost import Link
from dnic.schedule import CutWork, StageWork


def link(latency_us: float = 0.0, bytes_per_us: float = 1e24) -> Link:
    return Link(bandwidth_bytes_per_s=bytes_per_us * 1e6, latency_us=latency_us)


def cut(
    nbytes: int = 0, latency_us: float = 0.0, bytes_per_us: float = 1.0, **rest: Any
) -> CutWork:
    """A cut with as much back as forward."""
    rest = {"back_nbytes": nbytes, **rest}
    return CutWork(nbytes, link=link(latency_us, bytes_per_us), **rest)


def whole(most: int, least: int = 0) -> st.SearchStrategy[int]:
    return st.integers(least, most)


LINKS = st.builds(link, st.sampled_from([0, 0, 5, 40]), st.sampled_from([1, 4]))

STAGES = st.builds(
    StageWork,
    forward_us=whole(10, 1),
    backward_us=whole(10, 1),
    forward_fixed_us=whole(1),
    update_us=whole(12),
    loader_us=whole(4),
    replicas=st.sampled_from([1, 1, 2]),
)
ALONE = st.builds(
    StageWork,
    forward_us=whole(10, 1),
    backward_us=whole(10, 1),
    forward_fixed_us=whole(1),
    update_us=whole(12),
    loader_us=whole(4),
)
CUTS = st.builds(
    CutWork,
    nbytes=whole(20),
    back_nbytes=whole(20),
    link=LINKS,
    source=st.sampled_from(["exact", "synthetic", "virtual", "local", "stale"]),
    message_us=whole(2),
    back_message_us=st.one_of(st.none(), whole(2)),
    predict_us=whole(3),
    learn_us=whole(3),
    window=whole(3, 1),
)


@st.composite
def chains(
    draw: st.DrawFn, stages: st.SearchStrategy[StageWork] = STAGES, most: int = 5
) -> tuple[list[StageWork], list[CutWork]]:
    """Up to `most` stages in a row and the cuts between them."""
    works = draw(st.lists(stages, min_size=1, max_size=most))
    count = len(works) - 1
    return works, draw(st.lists(CUTS, min_size=count, max_size=count))
