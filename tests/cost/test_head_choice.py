"""How large heads are, and from how much they learn: against the definitions."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.cost import (
    DeviceProfile,
    TargetSize,
    choose_width,
    fitting_head,
    head_cost,
    load_profile,
    most_left_out,
    stage_slack_us,
)
from dnic.graph.graph import Value

CPU = load_profile("cpu-core")
CLASS, TOKENS = TargetSize((), 10), TargetSize((64,), 100)


def value(*shape: int | str) -> Value:
    return Value("h", shape, "float32", 0, True)


def width_for(slack_us: float, *shape: int | str, profile: DeviceProfile = CPU) -> int | None:
    return choose_width([value(*shape)], 256, 1, slack_us, profile)


def test_the_width_grows_with_the_slack_up_to_its_limits() -> None:
    widths = [width_for(slack, "B", 1024) for slack in (0, 1500, 3000, 6000, 12000, 1e9)]
    assert widths == sorted(w for w in widths if w)
    assert (widths[0], widths[-1]) == (16, 256)
    assert len(set(widths)) > 3
    assert width_for(1e9, "B", 100) == 64
    assert width_for(1e9, "B", 17) == 16
    assert width_for(1e9, "B", 16) is None
    assert width_for(1e9, "B") is None


def test_overhead_alone_narrows_nothing() -> None:
    slow_start = CPU.model_copy(update={"overhead_us": 1e6})
    assert width_for(3000, "B", 1024, profile=slow_start) == width_for(3000, "B", 1024)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(17, 2000),
    st.integers(1, 512),
    st.integers(0, 3),
    st.floats(0, 1e5),
    st.none() | st.integers(2, 1000),
)
def test_the_width_is_the_widest_that_fits(
    features: int, batch_size: int, hidden_layers: int, slack_us: float, classes: int | None
) -> None:
    target = None if classes is None else TargetSize((), classes)
    crossing = [value("B", features)]
    width = choose_width(crossing, batch_size, hidden_layers, slack_us, CPU, target)

    def fits(candidate: int) -> bool:
        costs = [
            head_cost(crossing, batch_size, hidden_layers, w, CPU, target).total_us
            for w in (16, candidate)
        ]
        return costs[1] - costs[0] <= slack_us

    allowed = [w for w in (16, 32, 64, 128, 256) if w <= features and fits(w)]
    assert width == max(allowed, default=16)


def test_slack_is_a_share_or_what_is_idle() -> None:
    assert stage_slack_us(1000, 1000) == 10
    assert stage_slack_us(1000, 1005) == 10
    assert stage_slack_us(1000, 1400) == 400


@pytest.mark.parametrize(
    ("shape", "batch_size", "target", "expected"),
    [
        (("B", 1024), 256, CLASS, 1),  # vectors: 256 rows
        (("B", 1024), 1024, CLASS, 4),
        (("B", 64, 32, 32), 32, CLASS, 4),  # maps: 8 samples
        (("B", 64, 32, 32), 32, None, 4),
        (("B", 64, 32, 32), 8, CLASS, 1),
        (("B", 64, 256), 16, TOKENS, 4),  # a target for each of 1024 positions
        (("B", 64, 256), 16, CLASS, 2),  # 8 sequences
        (("64*B", 256), 16, TOKENS, 4),
        (("B", 64, 8), 16, CLASS, 1),  # small: each sequence is one vector
        (("B", 64, 8), 16, TOKENS, 4),
    ],
)
def test_how_much_may_be_left_out(
    shape: tuple[int | str, ...], batch_size: int, target: TargetSize | None, expected: int
) -> None:
    assert most_left_out([value(*shape)], batch_size, target) == expected


def test_of_several_tensors_the_strictest_counts() -> None:
    assert most_left_out([value("B", 64, 32, 32), value("B", 1024)], 32, CLASS) == 1


@settings(max_examples=200, deadline=None)
@given(st.sampled_from([8, 32, 64, 128]), st.floats(0, 3e4), st.sampled_from([CLASS, TOKENS]))
def test_a_head_takes_no_more_than_the_slack(
    batch_size: int, slack_us: float, target: TargetSize
) -> None:
    crossing = [value("B", 64, 256)]
    most = most_left_out(crossing, batch_size, target)

    def time_us(width: int | None, one_in: int) -> float:
        return head_cost(crossing, batch_size, 1, width, CPU, target, one_in=one_in).total_us

    width, one_in = fitting_head(crossing, batch_size, 1, "auto", "auto", slack_us, CPU, target)
    assert time_us(width, one_in) - time_us(16, most) <= slack_us
    # All of it, as far as half of the slack goes.
    if one_in > 1:
        assert time_us(16, one_in // 2) - time_us(16, most) > slack_us / 2
    if width is not None and width < 256:
        assert time_us(2 * width, one_in) - time_us(16, most) > slack_us


@pytest.mark.parametrize("every", [2, 8, 64])
def test_a_head_that_seldom_learns_may_be_larger(every: int) -> None:
    """A mean step is what counts: learning in one step of eight takes an eighth of its time."""
    crossing = [value("B", 64, 256)]

    def step_us(width: int, one_in: int, every: int) -> float:
        cost = head_cost(crossing, 64, 1, width, CPU, CLASS, one_in=one_in)
        return cost.forward_us + cost.train_us / every

    def fitting(slack_us: float, every: int, **asked: Any) -> tuple[int | None, int]:
        wanted = {"width": "auto", "one_in": "auto"} | asked
        given = crossing, 64, 1, wanted["width"], wanted["one_in"], slack_us, CPU, CLASS
        return fitting_head(*given, learns_every=every)

    slack_us = step_us(64, 1, 1) - step_us(16, 1, 1)
    assert fitting(slack_us, 1, one_in=1) == (64, 1)
    width, _ = fitting(slack_us, every, one_in=1)
    assert width is not None
    assert step_us(width, 1, every) - step_us(16, 1, every) <= slack_us
    assert width == 256 or step_us(2 * width, 1, every) - step_us(16, 1, every) > slack_us
    assert width > 64 or every == 2
    assert choose_width(crossing, 64, 1, slack_us, CPU, CLASS, learns_every=every) == width
    most = most_left_out(crossing, 64, CLASS)
    slack_us = 2 * (step_us(16, 4, 1) - step_us(16, most, 1))
    assert most == 8 and fitting(slack_us, 1, width=16) == (16, 4)
    _, one_in = fitting(slack_us, every, width=16)
    assert one_in < 4 or every == 2
    assert 2 * (step_us(16, one_in, every) - step_us(16, most, every)) <= slack_us


def test_what_is_asked_for_stays() -> None:
    crossing = [value("B", 64, 256)]
    assert fitting_head(crossing, 64, 1, 32, 8, 0.0, CPU, CLASS) == (32, 8)
    assert fitting_head(crossing, 64, 0, None, "auto", 1e9, CPU, CLASS) == (None, 1)
    assert fitting_head(crossing, 64, 1, "auto", 2, 1e9, CPU, CLASS) == (256, 2)
    assert fitting_head(crossing, 64, 1, "auto", "auto", 0.0, CPU, CLASS) == (16, 8)
