"""Why there is no partition: the constraint that fails, by how much, and what would do."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnic.errors import PartitionError
from dnic.partition.exact import DeviceClass, Option, Problem, solve_exact

GIB = 2**30


def chain(times: tuple[float, ...], *devices: DeviceClass, **more: object) -> Problem:
    """Every gap may be cut."""
    fleet = devices or (DeviceClass(2),)
    return replace(Problem(times, tuple(range(1, len(times))), fleet), **more)  # type: ignore[arg-type]


def complaint(problem: Problem) -> PartitionError:
    with pytest.raises(PartitionError) as caught:
        solve_exact(problem)
    return caught.value


def test_too_little_memory_says_how_much_and_how_many_devices_would_fit() -> None:
    held = (4 * GIB,) * 10
    error = complaint(chain((1.0,) * 10, DeviceClass(4, 1.0, 8 * GIB), parameter_memory=held))
    assert error.problem.endswith("has 8 GiB")
    assert "needs 12 GiB, device" in error.problem
    assert error.expected is not None
    assert "4 GiB too much" in error.expected
    assert error.hint is not None
    assert error.hint.startswith("5 devices would fit")


def test_devices_of_the_largest_class_are_counted() -> None:
    held = (4 * GIB,) * 6
    fleet = (DeviceClass(1, 1.0, 4 * GIB), DeviceClass(1, 1.0, 8 * GIB))
    error = complaint(chain((1.0,) * 6, *fleet, parameter_memory=held))
    assert "a device of group" in error.problem
    assert error.hint is not None
    assert error.hint.startswith("3 devices of group 1 would fit")


def test_an_operation_that_no_device_can_hold() -> None:
    held = (1 * GIB, 20 * GIB, 1 * GIB)
    error = complaint(chain((1.0,) * 3, DeviceClass(2, 1.0, 16 * GIB), parameter_memory=held))
    assert "has 16 GiB" in error.problem
    assert error.hint is not None
    assert error.hint.startswith("no number of devices would fit")


def test_another_number_of_stages_would_fit() -> None:
    held = (4 * GIB,) * 4
    devices = DeviceClass(4, 1.0, 8 * GIB)
    error = complaint(chain((1.0,) * 4, devices, parameter_memory=held, stages=1))
    assert error.problem == "stage 0 needs 16 GiB, device 0 has 8 GiB"
    assert error.hint is not None
    assert error.hint.startswith("another number of stages would fit")


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        ({"stages": 3}, "3 stages asked, only 2 devices"),
        ({"stages": 2, "max_stages": 1}, "2 stages asked, only 1 stages allowed"),
        ({"fixed": (1, 2)}, "2 cuts make 3 stages, only 2 devices"),
        ({"fixed": (1,), "stages": 1}, "1 cuts make 2 stages, only 1 asked"),
        ({"candidates": (), "stages": 2}, "2 stages asked, only 0 cut points"),
        ({"candidates": (1,), "fixed": (2,)}, "gap 2 was asked for but may not be cut"),
        (
            {"fixed": (2,), "keep_together": ((1, 3),)},
            "gap 2 was asked for but lies inside a group to keep together",
        ),
        (
            {"fixed": (2,), "options": (Option("synthetic", allowed=(False,) * 5),)},
            "gap 2 was asked for but nothing is allowed there",
        ),
        (
            {"fixed": (2,), "max_decoupled": 0},
            "1 of the cuts asked for can only be decoupled, at most 0 may be",
        ),
        (
            {"stages": 2, "max_decoupled": 0},
            "2 stages asked, but only 0 cut points can be locked "
            "and at most 0 cuts may be decoupled",
        ),
        ({"replica_counts": (4,)}, "no partition on 2 devices"),
    ],
)
def test_counts_that_cannot_work_out(changed: dict[str, object], problem: str) -> None:
    assert complaint(chain((1.0,) * 4, **changed)).problem == problem


@pytest.mark.parametrize(
    "changed",
    [
        {"fixed_us": (1.0,)},
        {"nbytes": (1,)},
        {"latency_us": ((0.0, 0.0), (0.0, 0.0))},
        {"options": (Option("synthetic", penalty_units=(1,)),)},
        {"replica_counts": ()},
        {"bandwidth": ((0.0,),)},
        {"devices": (DeviceClass(1, 0.0),)},
        {"candidates": (0,)},
    ],
)
def test_columns_that_make_no_sense(changed: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"entries|speeds|bandwidths|replica counts|candidates"):
        solve_exact(chain((1.0,) * 4, **changed))
