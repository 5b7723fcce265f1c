"""The solver against brute force over every constraint, literal small plans, and its messages."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, pairwise
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.errors import PartitionError
from dnic.partition import CutProblem, solve

Cuts = tuple[int, ...]


def stage_us(problem: CutProblem, a: int, b: int) -> float:
    n = len(problem.times_us)
    time = sum(problem.times_us[a:b])
    time += problem.after_us[a] if problem.after_us and a > 0 else 0
    time += problem.before_us[b] if problem.before_us and b < n else 0
    return max(time, problem.link_us[b] if problem.link_us and b < n else 0)


def stage_bytes(problem: CutProblem, a: int, b: int) -> float:
    n = len(problem.times_us)
    held = sum(problem.memory_bytes[a:b])
    held += problem.after_bytes[a] if problem.after_bytes and a > 0 else 0
    return held + (problem.before_bytes[b] if problem.before_bytes and b < n else 0)


def step_us(problem: CutProblem, cuts: Cuts) -> float:
    return max(stage_us(problem, a, b) for a, b in pairwise((0, *cuts, len(problem.times_us))))


def is_allowed(problem: CutProblem, cuts: Cuts) -> bool:
    if not set(problem.fixed) <= set(cuts) or not set(cuts) <= set(problem.candidates):
        return False
    if any(a < gap < b for gap in cuts for a, b in problem.keep_together):
        return False
    stages = pairwise((0, *cuts, len(problem.times_us)))
    limits = problem.limits_bytes or (None,) * problem.max_stages
    return all(
        limit is None or stage_bytes(problem, a, b) <= limit
        for (a, b), limit in zip(stages, limits, strict=False)
    )


def merit(problem: CutProblem, cuts: Cuts, shortest: float) -> tuple[float, ...]:
    stages = pairwise((0, *cuts, len(problem.times_us)))
    idle = sum(sum(problem.times_us[a:b]) < problem.idle_share * shortest for a, b in stages)
    sums = [sum(column) for column in zip(*(problem.preferences[gap] for gap in cuts), strict=True)]
    return (idle, *sums, step_us(problem, cuts))


def brute_force(problem: CutProblem) -> tuple[float, tuple[float, ...], int] | None:
    """Shortest step, merit of the tidiest partition near it, number of cuts; None: impossible."""
    wanted = range(1, problem.max_stages + 1)
    if problem.stages is not None:
        wanted = range(problem.stages, problem.stages + 1)
    every: dict[int, list[Cuts]] = {}
    for stages in wanted:
        found = [c for c in combinations(problem.candidates, stages - 1) if is_allowed(problem, c)]
        if found:
            every[stages] = found
    if not every:
        return None
    shortest_with = {s: min(step_us(problem, c) for c in cuts) for s, cuts in every.items()}
    shortest = min(shortest_with.values())
    # As the solver: a hair above, so that rounding excludes nothing.
    limit = shortest * (1 + problem.tolerance) * (1 + 1e-9)
    stages = min(s for s in every if shortest_with[s] <= limit)
    near = (cuts for cuts in every[stages] if step_us(problem, cuts) <= limit)
    return shortest, min(merit(problem, cuts, shortest) for cuts in near), stages - 1


@st.composite
def problems(draw: st.DrawFn) -> CutProblem:
    """Sizes and which constraints there are by hypothesis, numbers from a seed, for speed."""
    n = draw(st.integers(3, 9))
    max_stages = draw(st.integers(2, 5))
    stages = draw(st.none() | st.integers(2, max_stages))
    pick = Random(draw(st.integers(0, 2**32)))
    present = draw(st.integers(0, 2**6 - 1))

    def column(bit: int, length: int, most: int) -> tuple[int, ...]:
        is_there = present >> bit & 1
        return tuple(pick.randint(0, most) for _ in range(length)) if is_there else ()

    candidates = tuple(gap for gap in range(1, n) if pick.random() < 0.8)
    fixed = pick.sample(candidates, min(len(candidates), pick.choice((0, 0, 1, 2))))
    ends = [sorted((pick.randint(0, n), pick.randint(0, n))) for _ in range(pick.choice((0, 0, 1)))]
    large = pick.choice((1, 2**60))
    limits = tuple(pick.choice((None, pick.randint(0, 90))) for _ in range(max_stages))
    return CutProblem(
        times_us=tuple(pick.randint(0, 40) for _ in range(n)),
        candidates=candidates,
        max_stages=max_stages,
        stages=stages,
        fixed=tuple(sorted(fixed)),
        keep_together=tuple((a, b) for a, b in ends),
        before_us=column(0, n + 1, 9),
        after_us=column(1, n + 1, 9),
        link_us=column(2, n + 1, 30),
        memory_bytes=tuple(pick.randint(0, 12) for _ in range(n)),
        before_bytes=column(3, n + 1, 12),
        after_bytes=column(4, n + 1, 12),
        limits_bytes=limits if present >> 5 & 1 else (),
        # Large ones do not fit one 64-bit number with the others.
        preferences=tuple(
            (pick.randint(0, 2), pick.randint(0, 3), pick.randint(0, 1) * large)
            for _ in range(n + 1)
        ),
        tolerance=draw(st.sampled_from([0.0, 0.06, 0.5])),
        idle_share=draw(st.sampled_from([0.0, 0.25, 0.5])),
    )


@settings(max_examples=1200, deadline=None)
@given(problems())
def test_equals_brute_force(problem: CutProblem) -> None:
    expected = brute_force(problem)
    if expected is None:
        with pytest.raises(PartitionError):
            solve(problem)
        return
    shortest, best_merit, cuts = expected
    found = solve(problem)
    assert is_allowed(problem, found.cuts)
    assert found.optimum_us == shortest
    assert len(found.cuts) == cuts
    assert found.step_us == step_us(problem, found.cuts)
    assert merit(problem, found.cuts, shortest) == best_merit


LITERAL: list[tuple[str, CutProblem, Cuts, float]] = [
    ("balanced", CutProblem((3, 3, 3, 3), (1, 2, 3), 2), (2,), 6),
    ("one stage is allowed to be all", CutProblem((5,), (), 3), (), 5),
    ("fewer stages when that is no slower", CutProblem((9, 1, 1), (1, 2), 3), (1,), 9),
    ("exactly three", CutProblem((9, 1, 1), (1, 2), 3, stages=3), (1, 2), 9),
    ("a blocked gap", CutProblem((3, 3, 3, 3), (1, 3), 2), (1,), 9),
    ("a fixed cut", CutProblem((3, 3, 3, 3), (1, 2, 3), 2, fixed=(3,)), (3,), 9),
    ("a group", CutProblem((3, 3, 3, 3), (1, 2, 3), 2, keep_together=((1, 3),)), (1,), 9),
    (
        "a head that costs too much",
        CutProblem((3, 3, 3, 3), (1, 2, 3), 2, before_us=(0, 0, 8, 0, 0)),
        (1,),
        9,
    ),
    (
        "a cut that does not pay",
        CutProblem((3, 3), (1,), 2, before_us=(0, 4, 0)),
        (),
        6,
    ),
    (
        "a slow link bounds the step",
        CutProblem((3, 3, 3, 3), (1, 2, 3), 2, link_us=(0, 0, 10, 0, 0)),
        (1,),
        9,
    ),
    (
        "the larger device takes more",
        CutProblem((1, 1, 1), (1, 2), 2, memory_bytes=(5, 5, 5), limits_bytes=(5, 10)),
        (1,),
        2,
    ),
    (
        "five per cent longer for one tensor less",
        CutProblem(
            (40, 2, 40),
            (1, 2),
            2,
            preferences=((0,), (2,), (1,), (0,)),
        ),
        (2,),
        42,
    ),
    (
        "no device for nothing, however tidy",
        CutProblem(
            (1, 50, 50, 50),
            (1, 2, 3),
            3,
            stages=3,
            tolerance=1.0,
            preferences=((0,), (0,), (1,), (1,), (0,)),
        ),
        (2, 3),
        51,
    ),
    (
        "an idle stage where there is no other",
        CutProblem((1, 50), (1,), 2, stages=2),
        (1,),
        50,
    ),
    (
        "a third stage that gains four per cent",
        CutProblem((50, 2, 48, 3), (1, 2, 3), 3),
        (2,),
        52,
    ),
    (
        "a third stage that gains a fifth",
        CutProblem((50, 10, 40, 20), (1, 2, 3), 3),
        (1, 3),
        50,
    ),
    (
        "not ten per cent longer",
        CutProblem((18, 2, 3, 17), (1, 2, 3), 2, preferences=((0,), (2,), (2,), (1,), (0,))),
        (2,),
        20,
    ),
]


@pytest.mark.parametrize(("name", "problem", "cuts", "step"), LITERAL, ids=[c[0] for c in LITERAL])
def test_small_plans(name: str, problem: CutProblem, cuts: Cuts, step: float) -> None:
    found = solve(problem)
    assert (found.cuts, found.step_us) == (cuts, step)


IMPOSSIBLE: list[tuple[CutProblem, str]] = [
    (CutProblem((1,) * 8, tuple(range(1, 8)), 12, stages=12), "12 stages asked, only 7 cut points"),
    (CutProblem((1, 1, 1), (1, 2), 2, fixed=(1, 2)), "2 cuts make 3 stages, only 2 devices"),
    (CutProblem((1, 1), (1,), 2, stages=3), "3 stages asked, only 2 devices"),
    (CutProblem((1, 1), (), 2, fixed=(1,)), "gap 1 was asked for but may not be cut"),
    (
        CutProblem((1, 1), (1,), 2, fixed=(1,), keep_together=((0, 2),)),
        "gap 1 was asked for but lies inside a group",
    ),
    (
        CutProblem(
            (1, 1, 1, 1),
            (1, 2, 3),
            4,
            memory_bytes=(1 << 30, 2 << 30, 3 << 30, int(21.4 * (1 << 30))),
            limits_bytes=(16 << 30,) * 4,
            stages=4,
        ),
        "stage 3 needs 21.4 GiB, device 3 has 16 GiB",
    ),
    (
        CutProblem((1, 1), (1,), 2, memory_bytes=(3 << 20, 5 << 20), limits_bytes=(4 << 20,) * 2),
        "stage 1 needs 5 MiB, device 1 has 4 MiB",
    ),
]


@pytest.mark.parametrize(("problem", "message"), IMPOSSIBLE)
def test_says_which_constraint_fails(problem: CutProblem, message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        solve(problem)


def test_work_grows_with_the_square_of_the_candidates_and_not_with_the_stages() -> None:
    def examined(n: int, stages: int) -> int:
        return solve(CutProblem((1.0,) * n, tuple(range(1, n)), stages, stages=stages)).examined

    pairs = 400 * 401 // 2
    # The first pass looks at each range once; the second only at ranges that fit a stage.
    assert pairs < examined(400, 8) < 1.5 * pairs
    assert examined(800, 8) < 4.2 * examined(400, 8)
    assert examined(400, 16) < examined(400, 8)


def test_many_operations() -> None:
    n = 2000
    times = tuple(float(1 + i * 7919 % 13) for i in range(n))
    problem = CutProblem(times, tuple(range(1, n)), 8, preferences=((1, 1),) * (n + 1))
    found = solve(problem)
    assert len(found.cuts) == 7
    assert found.step_us <= found.optimum_us * 1.06
    assert found.optimum_us >= sum(times) / 8
    exact = solve(replace(problem, tolerance=0.0))
    assert exact.step_us == exact.optimum_us == found.optimum_us
