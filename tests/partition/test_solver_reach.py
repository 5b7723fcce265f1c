"""The best start for many ends, against looking at every start of every end."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.partition.exact.reach import Keys, Rules


@given(st.integers(0, 2**40))
@settings(max_examples=300, deadline=None)
def test_the_best_start_for_each_end(seed: int) -> None:
    pick = np.random.default_rng(seed)
    points, first = int(pick.integers(4, 14)), int(pick.integers(0, 3))
    width, cases = int(pick.integers(1, points - first)), int(pick.integers(1, 3))
    rows = pick.integers(0, 9, (cases, width)).astype(float)
    rows[pick.random(rows.shape) < 0.3] = -np.inf
    start_bytes = (np.arange(points) + pick.integers(-5, 5, points)).astype(float)
    end_bytes = (np.arange(points) - pick.integers(0, 9, points)).astype(float)
    rules = Rules(
        lowest=np.maximum.accumulate(
            pick.integers(0, points, points) * (pick.random(points) < 0.2)
        ),
        behind=np.maximum(np.arange(points) - pick.integers(0, 2), 0),
        start_bytes=start_bytes,
        end_bytes=end_bytes,
        first_fitting=np.searchsorted(np.maximum.accumulate(start_bytes), end_bytes),
        binding=True,
    )
    ends = slice(first + 1, points)
    end_us = pick.integers(0, 9, points - first - 1).astype(float)
    longest_us = float(pick.integers(0, 9))
    best = Keys(rows, first).best_for(ends, end_us, longest_us, rules)
    for case in range(cases):
        for at, end in enumerate(range(first + 1, points)):
            allowed = [
                float(rows[case, i - first])
                for i in range(first, min(first + width, int(rules.behind[end])))
                if i >= rules.lowest[end] and start_bytes[i] >= end_bytes[end]
            ]
            wanted = max(allowed, default=-np.inf)
            if end_us[at] - wanted <= longest_us:
                assert best[case, at] == wanted
            else:
                assert end_us[at] - best[case, at] > longest_us
