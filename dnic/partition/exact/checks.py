"""What is wrong with a problem before anything is searched."""

from __future__ import annotations

from dnic.errors import PartitionError
from dnic.partition.exact.problem import Problem


def check_counts(problem: Problem) -> None:
    """Raises for columns of the wrong length and for counts that cannot work out.

    Raises:
        PartitionError: too few devices or gaps; fixed cuts that are not possible.
        ValueError: columns of the wrong length, or numbers that make no sense.
    """
    _check_columns(problem)
    usable = set(problem.open_gaps)
    _check_fixed(problem, usable)
    _check_stages(problem, usable)
    _check_decoupled(problem, usable)


def _check_columns(problem: Problem) -> None:
    n, classes = len(problem.times_us), len(problem.devices)
    columns: dict[str, tuple[int, int]] = {
        name: (len(getattr(problem, name)), n)
        for name in ("fixed_us", "parameter_bytes", "parameter_memory", "activation_memory")
    }
    columns |= {
        name: (len(getattr(problem, name)), n + 1)
        for name in ("after_bytes", "message_us", "nbytes", "back_nbytes", "preferences")
    }
    columns |= {
        name: (len(getattr(problem, name)), classes)
        for name in ("bandwidth", "latency_us", "reduce_us_per_byte", "reduce_latency_us")
    }
    for option in problem.options:
        columns |= {
            f"{option.name}.{name}": (len(getattr(option, name)), n + 1)
            for name in ("before_us", "before_bytes", "penalty_units", "allowed")
        }
    for name, (length, expected) in columns.items():
        if length not in (0, expected):
            raise ValueError(f"{name} has {length} entries, expected {expected} or none")
    if not n or not classes or any(one.count < 0 or one.speed <= 0 for one in problem.devices):
        raise ValueError("at least one operation, one class, and speeds above 0")
    if any(rate <= 0 for row in problem.bandwidth for rate in row):
        raise ValueError("bandwidths are above 0")
    if not problem.replica_counts or min(problem.replica_counts) < 1:
        raise ValueError("replica counts are 1 or more")
    if any(not 0 < gap < n for gap in problem.candidates):
        raise ValueError(f"candidates are gaps in 1..{n - 1}")


def _check_fixed(problem: Problem, usable: set[int]) -> None:
    inside = {gap for a, b in problem.keep_together for gap in range(a + 1, b)}
    for gap in problem.fixed:
        if gap not in problem.candidates:
            raise PartitionError(f"gap {gap} was asked for but may not be cut")
        if gap in inside:
            raise PartitionError(
                f"gap {gap} was asked for but lies inside a group to keep together",
                hint="take the cut or the group away",
            )
        if gap not in usable:
            names = ", ".join(option.name or "unnamed" for option in problem.options)
            raise PartitionError(
                f"gap {gap} was asked for but nothing is allowed there",
                expected=f"one of {names}" if names else "an option for cuts",
                hint="take the cut away, or allow another gradient there",
            )


def _check_stages(problem: Problem, usable: set[int]) -> None:
    stages, devices = problem.stages, problem.device_count
    limit = devices if problem.max_stages is None else min(problem.max_stages, devices)
    limited_by = f"{devices} devices" if limit == devices else f"{limit} stages allowed"
    if stages is not None and stages > limit:
        raise PartitionError(
            f"{stages} stages asked, only {limited_by}", expected="one device for each stage"
        )
    if limit < 1:
        raise PartitionError("no device", expected="at least one device and one stage")
    fixed = len(set(problem.fixed))
    if fixed + 1 > problem.most_stages:
        raise PartitionError(
            f"{fixed} cuts make {fixed + 1} stages, only "
            + (limited_by if stages is None else f"{stages} asked"),
        )
    if stages is not None and stages - 1 > len(usable):
        raise PartitionError(
            f"{stages} stages asked, only {len(usable)} cut points",
            expected=f"at most {len(usable) + 1} stages",
            hint="ask for fewer stages, or for `auto`",
        )


def _check_decoupled(problem: Problem, usable: set[int]) -> None:
    most = problem.max_decoupled
    if most is None:
        return
    lockable = {
        gap
        for gap in usable
        for option in problem.options
        if option.locked and (not option.allowed or option.allowed[gap])
    }
    only = sorted(set(problem.fixed) - lockable)
    if len(only) > most:
        raise PartitionError(
            f"{len(only)} of the cuts asked for can only be decoupled, at most {most} may be",
            where="gaps " + ", ".join(str(gap) for gap in only),
            hint="take a cut away, allow a locked one there, or raise `max_decoupled`",
        )
    if problem.stages is not None and problem.stages - 1 > len(lockable) + most:
        raise PartitionError(
            f"{problem.stages} stages asked, but only {len(lockable)} cut points can be locked "
            f"and at most {most} cuts may be decoupled",
            expected=f"at most {len(lockable) + most + 1} stages",
        )
