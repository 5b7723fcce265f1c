"""The exact solver against everything that there is, on small problems with every constraint."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.errors import PartitionError
from dnic.partition.exact import Problem, Solution, solve_exact
from tests.partition.exact_oracle import Judged, every_partition, judge
from tests.partition.exact_problems import random_plain_problem, random_problem

# As the solver: a hair above, so that rounding excludes nothing.
HAIR = 1 + 3e-9


def solved(problem: Problem) -> Solution | None:
    try:
        return solve_exact(problem)
    except PartitionError:
        return None


def idle_stages(one: Judged, solution: Solution, problem: Problem) -> int:
    least = problem.idle_share * solution.optimum_us / HAIR
    return sum(work < least for work in one.work_us)


def worst_preference(one: Judged, problem: Problem) -> tuple[int, ...]:
    free = [gap for gap in one.partition.cuts if gap not in problem.fixed]
    return (
        max((problem.preferences[gap] for gap in free), default=()) if problem.preferences else ()
    )


def check(problem: Problem) -> bool:
    """Whether there was a solution; raises where it is not what it should be."""
    everything = list(every_partition(problem))
    solution = solved(problem)
    if not everything:
        assert solution is None
        return False
    assert solution is not None
    optimum = min(one.objective for one in everything)
    assert solution.exact
    assert solution.optimum == pytest.approx(optimum, rel=1e-8, abs=1e-9)
    assert any(
        one.step_us == pytest.approx(solution.optimum_us, rel=1e-8, abs=1e-9)
        and one.objective == pytest.approx(optimum, rel=1e-8, abs=1e-9)
        for one in everything
    )
    own = judge(problem, solution.partition)
    assert own is not None, "a constraint is broken"
    assert own.step_us == pytest.approx(solution.step_us, rel=1e-9, abs=1e-9)
    assert own.units * problem.unit == pytest.approx(solution.penalty)
    assert own.objective == pytest.approx(solution.objective, rel=1e-9, abs=1e-9)
    used = [0] * len(problem.devices)
    for device, replicas in solution.partition.placement:
        used[device] += replicas
    assert tuple(used) == solution.devices_used
    limit = optimum * (1 + problem.tolerance) * HAIR
    near = [one for one in everything if one.objective <= limit]
    assert own.objective <= limit * HAIR
    fewest = min(len(one.work_us) for one in near)
    assert len(own.work_us) == fewest
    near = [one for one in near if len(one.work_us) == fewest]
    if any(idle_stages(one, solution, problem) == 0 for one in near):
        assert idle_stages(own, solution, problem) == 0
        near = [one for one in near if idle_stages(one, solution, problem) == 0]
    best_liked = min(worst_preference(one, problem) for one in near)
    assert worst_preference(own, problem) == best_liked
    return True


@given(st.integers(0, 2**40))
@settings(max_examples=1500, deadline=None)
def test_as_good_as_everything_that_there_is(seed: int) -> None:
    check(random_problem(seed))


@given(st.integers(0, 2**40))
@settings(max_examples=500, deadline=None)
def test_replicas_on_one_class_without_penalties(seed: int) -> None:
    check(random_plain_problem(seed))
