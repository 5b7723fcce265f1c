"""Literal small plans: what each rule of the exact solver is there for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from random import Random

import pytest

import dnic.partition.exact.levels as levels
import dnic.partition.exact.reach as reach
import dnic.partition.exact.states as states
from dnic.errors import PartitionError
from dnic.partition.exact import DeviceClass, Option, Problem, solve_exact
from tests.partition.exact_oracle import every_partition, judge
from tests.partition.exact_problems import random_plain_problem, random_problem


def chain(*times: float) -> Problem:
    """Every gap may be cut, on two devices."""
    return Problem(times, tuple(range(1, len(times))), (DeviceClass(2),))


def test_the_slowest_stage_is_as_fast_as_possible() -> None:
    solution = solve_exact(chain(3, 1, 4, 1, 5))
    assert solution.cuts == (3,)
    assert solution.step_us == solution.optimum == 8
    assert solution.devices_used == (2,)


def test_one_stage_where_a_second_gains_nothing() -> None:
    solution = solve_exact(chain(1, 100, 1))
    assert solution.cuts == ()
    assert solution.step_us == 102


def test_no_idle_stage_where_there_is_another_way() -> None:
    problem = replace(chain(1, 1, 50, 50), stages=2, tolerance=1.0)
    liked = replace(problem, preferences=((9,), (0,), (9,), (9,), (9,)))
    assert solve_exact(liked).cuts in ((2,), (3,))
    assert solve_exact(replace(liked, idle_share=0.0)).cuts == (1,)


def test_the_faster_device_gets_more() -> None:
    problem = replace(chain(*(1.0,) * 9), devices=(DeviceClass(1), DeviceClass(1, 2.0)))
    solution = solve_exact(problem)
    assert solution.step_us == 3
    (cut,) = solution.cuts
    work = dict(zip(solution.partition.placement, (cut, 9 - cut), strict=True))
    assert work == {(0, 1): 3, (1, 1): 6}


def test_a_locked_cut_is_waited_for_and_a_decoupled_one_is_paid_for() -> None:
    dear = Option("synthetic", penalty_units=(1500,) * 5)
    cheap = replace(dear, penalty_units=(100,) * 5)
    problem = replace(chain(10, 10, 10, 10), options=(Option("exact", locked=True), dear), stages=2)
    problem = replace(problem, latency_us=((3.0,),))
    locked = solve_exact(problem)
    assert locked.partition.options == (0,)
    assert (locked.step_us, locked.penalty) == (46, 0)
    decoupled = solve_exact(replace(problem, options=(problem.options[0], cheap)))
    assert decoupled.partition.options == (1,)
    assert (decoupled.step_us, decoupled.objective) == (20, pytest.approx(22))


def test_replicas_share_the_work_and_pay_for_the_all_reduce() -> None:
    problem = replace(
        chain(8, 1, 1, 1),
        devices=(DeviceClass(3),),
        replica_counts=(1, 2),
        parameter_bytes=(10, 0, 0, 0),
        reduce_us_per_byte=(0.05,),
        reduce_latency_us=(0.25,),
        tolerance=0.0,
    )
    solution = solve_exact(problem)
    assert solution.partition.placement == ((0, 2), (0, 1))
    # Half the work, ten bytes once around, two messages.
    assert solution.step_us == 8 / 2 + 0.05 * 10 + 0.25 * 2


def test_orders_of_many_classes_are_limited_and_that_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = 0
    for seed in range(60):
        problem = random_problem(seed, most_operations=6)
        try:
            best = solve_exact(problem)
        except PartitionError:
            continue
        monkeypatch.setattr(states, "MOST_COUNTS", 0)
        try:
            limited = solve_exact(problem)
        except PartitionError:
            continue
        finally:
            monkeypatch.undo()
        assert limited.exact == (len(problem.devices) == 1)
        assert limited.objective <= limited.optimum * (1 + problem.tolerance) * (1 + 1e-8)
        assert limited.optimum >= best.optimum * (1 - 1e-8)
        assert judge(problem, limited.partition) is not None
        if not limited.exact:
            found += 1
            together = [k for k, _ in limited.partition.placement]
            changes = sum(a != b for a, b in pairwise(together))
            assert changes == len(set(together)) - 1
            assert "the devices of each class together" in limited.searched
    assert found > 10


def test_more_than_six_classes_come_in_a_few_orders() -> None:
    fleet = tuple(DeviceClass(4, 1.0 + k, 10 * (9 - k)) for k in range(8))
    problem = replace(chain(*(1.0,) * 40), devices=fleet, parameter_memory=(1,) * 40)
    solution = solve_exact(problem)
    assert not solution.exact
    assert solution.searched.startswith("4 orders")
    assert judge(problem, solution.partition) is not None


@pytest.mark.parametrize("make", [random_problem, random_plain_problem])
def test_looking_at_few_pairs_at_a_time_changes_nothing(
    make: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert callable(make)
    monkeypatch.setattr(reach, "_MOST_PAIRS", 2)
    monkeypatch.setattr(levels, "_MOST_PAIRS", 2)
    for seed in range(1000, 1060):
        problem = make(seed)
        optimum = min((one.objective for one in every_partition(problem)), default=None)
        if optimum is not None:
            assert solve_exact(problem).optimum == pytest.approx(optimum, rel=1e-8)


def test_a_long_chain_of_equal_blocks_is_cut_between_them() -> None:
    pick = Random(0)
    block = tuple(pick.uniform(1, 9) for _ in range(12))
    problem = replace(chain(*block * 64), devices=(DeviceClass(16),))
    liked = tuple((0,) if gap % 12 == 0 else (1,) for gap in range(12 * 64 + 1))
    solution = solve_exact(replace(problem, preferences=liked))
    assert solution.cuts == tuple(range(48, 12 * 64, 48))
    assert solution.step_us == pytest.approx(4 * sum(block))


def test_too_many_states_to_count_stages_are_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "MOST_EDGES", 0)
    uncounted = 0
    for seed in range(150):
        problem = random_problem(seed, most_operations=6)
        everything = list(every_partition(problem))
        if not everything:
            continue
        solution = solve_exact(problem)
        optimum = min(one.objective for one in everything)
        assert solution.optimum == pytest.approx(optimum, rel=1e-8)
        assert judge(problem, solution.partition) is not None
        assert solution.objective <= optimum * (1 + problem.tolerance) * (1 + 1e-8)
        uncounted += solution.searched.endswith("the number of stages as it came")
    assert uncounted > 10
