"""What guards decide, from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable

import pytest

from dnic.runtime.guard import Guard, Quality, Turn, told
from dnic.runtime.plan import GuardPlan

GOOD, BAD, NO_NUMBER = (Quality(0.5, 1.0, explained) for explained in (0.3, -0.2, math.nan))
LETTERS = {"warm-up": "w", "predicted": "p", "exact": "e", "none": "n"}
QUICK = GuardPlan(check_every=1, patience=2, retry_after=4)


def regimes(guard: Guard, checks: Iterable[Quality]) -> str:
    """The regime of each step; after each step one check."""
    found = ""
    for step, quality in enumerate(checks):
        found += LETTERS[guard.regime(step)]
        guard.judge(quality)
    return found


@pytest.mark.parametrize(
    ("plan", "checks", "expected"),
    [
        pytest.param(QUICK, "ggggggggggg", "wwppppppppp", id="a good head is used"),
        pytest.param(None, "bbbbbbbbbbb", "wwppppppppp", id="no guard"),
        pytest.param(QUICK, "ggbgbgbgbgb", "wwppppppppp", id="one failure is none"),
        pytest.param(QUICK, "gggbbgggggg", "wwpppeeeepp", id="back to exact, and tried again"),
        pytest.param(QUICK, "ggg--gggggg", "wwpppeeeepp", id="what is no number fails"),
        pytest.param(QUICK, "bbgggggggggg", "wweeeepppppp", id="not let go after warming up"),
        pytest.param(QUICK, "bggggggggggg", "wwpppppppppp", id="a failure while warming up"),
        pytest.param(
            QUICK,
            "gggbbgggg" + "bb" + "g" * 12,
            "wwpppeeee" + "pp" + "e" * 8 + "pppp",
            id="twice as long the second time",
        ),
        pytest.param(
            QUICK,
            "gggbbgggb" + "g" * 12,
            "wwpppeeee" + "e" * 8 + "pppp",
            id="not tried while it would fail",
        ),
        pytest.param(
            GuardPlan(1, 2, 4, fallback="none"),
            "gggbbgggggg",
            "wwpppnnnnpp",
            id="no gradient instead",
        ),
        pytest.param(GuardPlan(1, 2, 4, minimum=0.3), "ggggggg", "wweeeee", id="not enough"),
    ],
)
def test_regimes(plan: GuardPlan | None, checks: str, expected: str) -> None:
    """Two steps of warming up; g, b and - are checks after each step."""
    guard = Guard(plan)
    guard.begin(2)
    quality = {"g": GOOD, "b": BAD, "-": NO_NUMBER}
    assert regimes(guard, [quality[check] for check in checks]) == expected


@pytest.mark.parametrize(
    ("until", "checks", "expected"),
    [
        pytest.param(None, "gggggggg", "wwwwwppp", id="its time"),
        pytest.param(0.1, "bbgggggg", "wwwppppp", id="before its time"),
        pytest.param(0.1, "bbgbgbgb", "wwwppppp", id="once for all"),
        pytest.param(0.4, "gggggggg", "wwwwwppp", id="never good enough"),
        pytest.param(0.1, "--------", "wwwwwppp", id="what is no number is not good"),
    ],
)
def test_warming_up_ends_when_the_head_is_good(
    until: float | None, checks: str, expected: str
) -> None:
    guard = Guard(None, until)
    guard.begin(5)
    quality = {"g": GOOD, "b": BAD, "-": NO_NUMBER}
    assert regimes(guard, [quality[check] for check in checks]) == expected


def test_what_has_changed_is_said() -> None:
    guard = Guard(QUICK, until=0.25)
    guard.begin(100)
    assert regimes(guard, [GOOD, GOOD, BAD, BAD, GOOD]) == "wpppe"
    assert guard.turns == [
        Turn(1, "predicted", GOOD, None),
        Turn(4, "exact", BAD, again=8),
    ]
    rows = [turn.to_json() for turn in guard.turns]
    assert rows[1] == {
        "step": 4,
        "regime": "exact",
        "cosine": 0.5,
        "norm_ratio": 1.0,
        "explained": -0.2,
        "again": 8,
    }
    assert [told("layer3", row) for row in rows] == [
        "from step 1 on layer3 goes on with what its head predicts "
        "(it explains 30% of the true gradient)",
        "from step 4 on layer3 waits for the true gradient: the head is of no use "
        "(it explains -20% of the true gradient), and is tried again at step 8",
    ]
    guard.begin(100)
    assert not guard.turns, "each epoch tells its own"


def test_that_warming_up_is_over_at_its_time_is_no_news() -> None:
    guard = Guard(QUICK)
    guard.begin(2)
    assert regimes(guard, [GOOD] * 5) == "wwppp"
    assert not guard.turns


@pytest.mark.parametrize("stop", range(12))
def test_a_guard_goes_on_where_it_stopped(stop: int) -> None:
    checks = [GOOD if check == "g" else BAD for check in "ggbbggbgbbggggb"]
    whole = Guard(QUICK, until=0.2)
    whole.begin(4)
    expected = regimes(whole, checks)
    guard = Guard(QUICK, until=0.2)
    guard.begin(4)
    found = ""
    for step, quality in enumerate(checks):
        if step == stop:
            state, guard = guard.state_dict(), Guard(QUICK, until=0.2)
            guard.load_state_dict(state)
            guard.begin(4)
        found += LETTERS[guard.regime(step)]
        guard.judge(quality)
    assert found == expected == "wpppeeeeppeeeee"


def test_a_guard_that_was_switched_off_lets_the_head_go_on() -> None:
    guard = Guard(QUICK)
    guard.begin(0)
    assert regimes(guard, [BAD, BAD, BAD]) == "ppe"
    off = Guard(None)
    off.load_state_dict(guard.state_dict())
    off.begin(0)
    assert off.regime(3) == "predicted"
