"""Small random problems with any of the constraints, from a seed."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from dnic.partition.exact import DeviceClass, Option, Problem

# How many devices there are of each class.
FLEETS = ((1,), (2,), (3,), (4,), (1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (1, 1, 1), (1, 2, 1))


def random_problem(seed: int, most_operations: int = 7) -> Problem:
    """Numbers are small, so that ties and exact fits happen."""
    pick = Random(seed)
    n = pick.randint(1, most_operations)

    def column(length: int, most: int, share: float = 0.5) -> tuple[int, ...]:
        there = pick.random() < share
        return tuple(pick.randint(0, most) for _ in range(length)) if there else ()

    counts = pick.choice(FLEETS)
    classes = len(counts)
    any_limit = pick.random() < 0.5
    devices = tuple(
        DeviceClass(
            count,
            pick.choice((0.5, 1.0, 1.0, 2.0, 3.0)),
            pick.randint(5, 90) if any_limit and pick.random() < 0.8 else None,
        )
        for count in counts
    )

    def matrix(*entries: float) -> tuple[tuple[float, ...], ...]:
        if pick.random() < 0.4:
            return ()
        of = {(a, b): pick.choice(entries) for a in range(classes) for b in range(a, classes)}
        return tuple(
            tuple(of[min(a, b), max(a, b)] for b in range(classes)) for a in range(classes)
        )

    candidates = tuple(gap for gap in range(1, n) if pick.random() < 0.85)
    fixed = pick.sample(candidates, min(len(candidates), pick.choice((0, 0, 0, 1, 2))))
    ends = [sorted((pick.randint(0, n), pick.randint(0, n))) for _ in range(pick.choice((0, 0, 1)))]

    def option(name: str, locked: bool, most_penalty: int) -> Option:
        units = column(n + 1, most_penalty, 0.6)
        if units and pick.random() < 0.4:
            units = (pick.choice((1, 20, 300)),) * (n + 1)
        allowed: tuple[bool, ...] = ()
        if pick.random() < 0.4:
            allowed = tuple(pick.random() < 0.8 for _ in range(n + 1))
        return Option(name, locked, column(n + 1, 9), column(n + 1, 12, 0.4), units, allowed)

    options = [option("exact", True, 40), option("synthetic", False, 300)]
    options.append(option("local", False, 600))
    options = pick.choice((options, options, options[1:], options[1:2], options[:1], options[:2]))
    # What a cut adds matters more than what the operations hold.
    uneven = any_limit and pick.random() < 0.4
    replicas = pick.choice(((1,), (1,), (1, 2), (1, 2, 4), (1, 3), (2,)))
    total = sum(counts)
    return Problem(
        times_us=tuple(pick.randint(0, 40) for _ in range(n)),
        candidates=candidates,
        devices=devices,
        options=tuple(options),
        fixed_us=column(n, 9),
        fixed=tuple(sorted(fixed)),
        keep_together=tuple((a, b) for a, b in ends),
        max_stages=pick.choice((None, None, pick.randint(1, total))),
        stages=pick.choice((None, None, pick.randint(1, total))),
        replica_counts=replicas,
        bandwidth=matrix(1e6, 2e6, 5e6, 1e7),
        latency_us=matrix(0, 1, 3, 8),
        reduce_us_per_byte=tuple(pick.choice((0, 0.25, 0.5)) for _ in counts),
        reduce_latency_us=tuple(pick.choice((0, 1, 2)) for _ in counts),
        parameter_bytes=column(n, 12),
        parameter_memory=column(n, 3 if uneven else 12, 0.8),
        activation_memory=column(n, 12),
        after_bytes=column(n + 1, 60, 1.0) if uneven else column(n + 1, 12),
        message_us=column(n + 1, 9),
        nbytes=column(n + 1, 60),
        back_nbytes=column(n + 1, 60),
        max_decoupled=pick.choice((None, None, 0, 1, 2)),
        unit=pick.choice((0.001, 0.001, 0.01, 0.0)),
        preferences=tuple((pick.randint(0, 2), pick.randint(0, 3)) for _ in range(n + 1))
        if pick.random() < 0.7
        else (),
        tolerance=pick.choice((0.0, 0.06, 0.06, 0.5)),
        idle_share=pick.choice((0.1, 0.1, 0.0, 0.4)),
    )


def random_plain_problem(seed: int) -> Problem:
    """One class of devices with replicas, nothing locked, seldom penalties."""
    pick = Random(seed)
    problem = random_problem(seed)
    count = pick.randint(1, 6)
    dear = pick.random() < 0.3
    rates = tuple(row[:1] for row in problem.bandwidth[:1])
    return replace(
        problem,
        devices=(replace(problem.devices[0], count=count),),
        options=tuple(
            replace(option, locked=False, penalty_units=option.penalty_units if dear else ())
            for option in problem.options[-2:]
        ),
        replica_counts=pick.choice(((1, 2), (1, 2, 4), (1, 3), (2,), (1, 2, 3, 4, 5))),
        bandwidth=rates,
        latency_us=(),
        reduce_us_per_byte=problem.reduce_us_per_byte[:1],
        reduce_latency_us=problem.reduce_latency_us[:1],
        stages=pick.choice((None, pick.randint(1, count))),
        max_stages=pick.choice((None, pick.randint(1, count))),
        max_decoupled=None,
    )
