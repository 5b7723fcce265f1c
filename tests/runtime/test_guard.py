"""What guards decide, from numbers alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import replace

import pytest

from dnic.runtime.guard import Guard, Quality, Turn, told
from dnic.runtime.plan import GuardPlan

GOOD, POOR, BAD, NO_NUMBER = (
    Quality(0.5, 1.0, explained) for explained in (0.3, 0.1, -0.2, math.nan)
)
LETTERS = {"warm-up": "w", "predicted": "p", "exact": "e", "none": "n"}
QUICK = GuardPlan(check_every=1, patience=2, retry_after=4)
# POOR is enough at first, and for two checks in use.
GROWING = GuardPlan(1, 2, 4, minimum=0.2, at_first=0.05, growth=3)


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
        pytest.param(QUICK, "gggbgbgbgbg", "wwppppppppp", id="one failure is none"),
        pytest.param(QUICK, "ggbgggggggg", "wwpeeeepppp", id="but for the first check in use"),
        pytest.param(QUICK, "gggbbgggggg", "wwpppeeeepp", id="back to exact, and tried again"),
        pytest.param(QUICK, "ggg--gggggg", "wwpppeeeepp", id="what is no number fails"),
        pytest.param(QUICK, "bbgggggggggg", "wweepppppppp", id="not let go after warming up"),
        pytest.param(QUICK, "bgbgbgbgbg", "wwwwwwwwww", id="nor while it passes now and then"),
        pytest.param(QUICK, "bggggggggggg", "wwwppppppppp", id="a failure while warming up"),
        pytest.param(
            QUICK,
            "gggbbgggg" + "gbb" + "g" * 12,
            "wwpppeeee" + "ppp" + "e" * 8 + "pppp",
            id="twice as long the second time",
        ),
        pytest.param(
            QUICK,
            "gggbbgggb" + "g" * 12,
            "wwpppeeee" + "e" * 8 + "pppp",
            id="not tried while it would fail",
        ),
        pytest.param(
            QUICK,
            "gggbbggbg" + "g" * 12,
            "wwpppeeee" + "e" * 8 + "pppp",
            id="nor when it has passed just once",
        ),
        pytest.param(
            GuardPlan(1, 2, 4, fallback="none"),
            "gggbbgggggg",
            "wwpppnnnnpp",
            id="no gradient instead",
        ),
        pytest.param(
            GuardPlan(1, 2, 4, fallback="none"), "bbggggg", "wwnnppp", id="nor before it is proven"
        ),
        pytest.param(GuardPlan(1, 2, 4, proof=4), "ggggggg", "wwwwppp", id="a longer proof"),
        pytest.param(GuardPlan(1, 2, 4, minimum=0.3), "ggggggg", "wweeeee", id="not enough"),
        pytest.param(QUICK, "ooooooo", "wweeeee", id="not enough, if nothing is said"),
        pytest.param(GuardPlan(1, 2, 4, minimum=0.0), "ooooooo", "wwppppp", id="a little"),
        pytest.param(GROWING, "oooogggggg", "wwpppppppp", id="it grows in time"),
        pytest.param(GROWING, "oooogggogo", "wwpppppppp", id="one failure later on is none"),
        pytest.param(GROWING, "oooooogggg", "wwppppeeee", id="it does not grow"),
        pytest.param(GROWING, "oogggoogggg", "wwpppppeeee", id="it does not stay good"),
        pytest.param(GROWING, "oooooooooooooo", "wwppppeeeeeeee", id="then it must do more"),
        pytest.param(
            GROWING, "ooooooooggoooo", "wwppppeeeepeee", id="from the first check in use on"
        ),
        pytest.param(GROWING, "oobooooooooo", "wwpeeeeppppe", id="it grows anew"),
        pytest.param(GROWING, "oobogggggg", "wwpeeeeppp", id="at first that is no reason to"),
    ],
)
def test_regimes(plan: GuardPlan | None, checks: str, expected: str) -> None:
    """Two steps of warming up; g, o, b and - are checks after each step."""
    guard = Guard(plan)
    guard.begin(2)
    quality = {"g": GOOD, "o": POOR, "b": BAD, "-": NO_NUMBER}
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
        Turn(1, "predicted", GOOD, None, 0.1),
        Turn(4, "exact", BAD, again=8, least=0.1),
    ]
    rows = [turn.to_json() for turn in guard.turns]
    assert rows[1] == {
        "step": 4,
        "regime": "exact",
        "cosine": 0.5,
        "norm_ratio": 1.0,
        "explained": -0.2,
        "again": 8,
        "least": 0.1,
    }
    assert [told("layer3", row) for row in rows] == [
        "from step 1 on layer3 goes on with what its head predicts "
        "(it explains 30% of the true gradient)",
        "from step 4 on layer3 waits for the true gradient: the head is of no use "
        "(it explains -20% of the true gradient), and is tried again at step 8",
    ]
    assert told("layer3", rows[1] | {"explained": 0.04}) == (
        "from step 4 on layer3 waits for the true gradient: the head is of no use "
        "(it explains 4% of the true gradient, not 10%), and is tried again at step 8"
    )
    guard.begin(100)
    assert not guard.turns, "each epoch tells its own"


def test_until_is_not_less_than_the_minimum() -> None:
    guard = Guard(QUICK, until=0.05)
    guard.begin(9)
    assert regimes(guard, [POOR, POOR, GOOD, GOOD, GOOD]) == "wwwpp"


def test_that_warming_up_is_over_at_its_time_is_no_news() -> None:
    for plan, checks, expected in (
        (QUICK, [GOOD] * 5, "wwppp"),
        (GuardPlan(1, 2, 4, fallback="none"), [BAD, GOOD, BAD], "wwn"),
    ):
        guard = Guard(plan)
        guard.begin(2)
        assert regimes(guard, checks) == expected
        assert not guard.turns


def test_that_a_head_is_not_let_go_is_said_and_when_it_is() -> None:
    guard = Guard(QUICK)
    guard.begin(2)
    assert regimes(guard, [BAD, BAD, GOOD, GOOD, GOOD]) == "wweep"
    assert guard.turns == [
        Turn(2, "exact", BAD, least=0.1),
        Turn(4, "predicted", GOOD, least=0.1),
    ]
    assert told("layer3", guard.turns[0].to_json()) == (
        "from step 2 on layer3 waits for the true gradient: the head is of no use yet "
        "(it explains -20% of the true gradient)"
    )
    late = Guard(QUICK)
    late.begin(2)
    assert regimes(late, [BAD, GOOD, GOOD, GOOD]) == "wwwp"
    assert late.turns == [Turn(3, "predicted", GOOD, least=0.1)]


def test_a_head_that_does_not_say_how_it_does_is_let_go() -> None:
    guard = Guard(QUICK)
    guard.begin(2)
    guard.trust()
    again = Guard(QUICK)
    again.load_state_dict(guard.state_dict())
    again.begin(2)
    assert [again.regime(step) for step in range(4)] == ["warm-up"] * 2 + ["predicted"] * 2
    assert not again.tries


@pytest.mark.parametrize(
    ("plan", "between"),
    [(GuardPlan(1, 2, 4, 0.1, "none"), None), (replace(GROWING, fallback="none"), POOR)],
    ids=["no check", "a check that is good enough at first"],
)
def test_a_trial_lasts_until_a_check_has_passed(plan: GuardPlan, between: Quality | None) -> None:
    """From step 2 on the head is used; g at step 4 is the first check that it shows itself in."""
    guard = Guard(plan)
    guard.begin(2)
    tries = []
    for step, quality in enumerate([GOOD, GOOD, between, None, GOOD, BAD]):
        guard.regime(step)
        state, guard = guard.state_dict(), Guard(plan)
        guard.load_state_dict(state)
        guard.begin(2)
        tries.append(guard.tries)
        if quality is not None:
            guard.judge(quality)
    assert tries == [False, False, True, True, True, False]
    waits = Guard(QUICK)
    waits.begin(0)
    assert regimes(waits, [GOOD, GOOD, GOOD]) == "wwp" and not waits.tries


@pytest.mark.parametrize(
    ("plan", "until", "letters", "expected"),
    [
        (QUICK, 0.2, "ggbbggggggbbggb", "wpppeeeeppppeee"),
        (GROWING, None, "ooooooooooooooo", "wwwwppppeeeeeee"),
    ],
    ids=["tried again", "grown"],
)
@pytest.mark.parametrize("stop", range(12))
def test_a_guard_goes_on_where_it_stopped(
    plan: GuardPlan, until: float | None, letters: str, expected: str, stop: int
) -> None:
    checks = [{"g": GOOD, "o": POOR, "b": BAD}[letter] for letter in letters]
    whole = Guard(plan, until)
    whole.begin(4)
    assert regimes(whole, checks) == expected
    guard = Guard(plan, until)
    guard.begin(4)
    found = ""
    for step, quality in enumerate(checks):
        if step == stop:
            state, guard = guard.state_dict(), Guard(plan, until)
            guard.load_state_dict(state)
            guard.begin(4)
        found += LETTERS[guard.regime(step)]
        guard.judge(quality)
    assert found == expected


def test_a_guard_that_was_switched_off_lets_the_head_go_on() -> None:
    guard = Guard(QUICK)
    guard.begin(0)
    assert regimes(guard, [BAD, BAD, BAD]) == "wwe"
    off = Guard(None)
    off.load_state_dict(guard.state_dict())
    off.begin(0)
    assert off.regime(3) == "predicted"
