"""Everything that a partition may be, enumerated straight from the definition of the problem."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations, product

from dnic.partition.exact import Partition, Problem


@dataclass(frozen=True)
class Judged:
    """One partition that satisfies every constraint."""

    partition: Partition
    step_us: float
    units: int
    objective: float
    work_us: tuple[float, ...]


def judge(problem: Problem, partition: Partition) -> Judged | None:
    """Costs of a partition; None where it breaks a constraint."""
    return None if _breaks(problem, partition) else _judged(problem, partition)


def every_partition(problem: Problem) -> Iterator[Judged]:
    """All that satisfy every constraint."""
    most = sum(one.count for one in problem.devices)
    placements: dict[int, list[tuple[tuple[int, int], ...]]] = {}
    kinds = list(product(range(len(problem.devices)), problem.replica_counts))
    for stages in range(1, most + 1):
        placements[stages] = [
            chosen
            for chosen in product(kinds, repeat=stages)
            if all(
                sum(r for k, r in chosen if k == device) <= one.count
                for device, one in enumerate(problem.devices)
            )
        ]
    numbers = range(1, most + 1) if problem.stages is None else (problem.stages,)
    for stages in numbers:
        for cuts in combinations(problem.candidates, stages - 1):
            if not set(problem.fixed) <= set(cuts):
                continue
            for options in product(range(len(problem.options)), repeat=stages - 1):
                for placement in placements.get(stages, []):
                    judged = judge(problem, Partition(cuts, options, placement))
                    if judged is not None:
                        yield judged


def _breaks(problem: Problem, partition: Partition) -> bool:
    cuts, options, placement = partition.cuts, partition.options, partition.placement
    most = problem.max_stages
    return (
        (most is not None and len(placement) > most)
        or (problem.stages is not None and len(placement) != problem.stages)
        or len(placement) != len(cuts) + 1
        or len(options) != len(cuts)
        or list(cuts) != sorted(set(cuts))
        or not set(cuts) <= set(problem.candidates)
        or not set(problem.fixed) <= set(cuts)
        or any(a < gap < b for gap in cuts for a, b in problem.keep_together)
        or any(r not in problem.replica_counts for _, r in placement)
        or any(
            sum(r for k, r in placement if k == device) > one.count
            for device, one in enumerate(problem.devices)
        )
        or any(
            problem.options[o].allowed and not problem.options[o].allowed[gap]
            for o, gap in zip(options, cuts, strict=True)
        )
        or (
            problem.max_decoupled is not None
            and sum(not problem.options[o].locked for o in options) > problem.max_decoupled
        )
        or not _fits(problem, partition)
    )


def _fits(problem: Problem, partition: Partition) -> bool:
    bounds = (0, *partition.cuts, len(problem.times_us))
    for stage, (device, replicas) in enumerate(partition.placement):
        limit = problem.devices[device].memory_bytes
        a, b = bounds[stage], bounds[stage + 1]
        held = Fraction(sum(problem.parameter_memory[a:b]))
        held += Fraction(sum(problem.activation_memory[a:b]), replicas)
        if stage > 0 and problem.after_bytes:
            held += problem.after_bytes[a]
        if stage < len(partition.cuts):
            before = problem.options[partition.options[stage]].before_bytes
            held += before[b] if before else 0
        if limit is not None and held > limit:
            return False
    return True


def _judged(problem: Problem, partition: Partition) -> Judged:
    n = len(problem.times_us)
    bounds = (0, *partition.cuts, n)
    last = len(partition.cuts)
    groups, busy, work_us = [0.0], [0.0], []
    for stage, (device, replicas) in enumerate(partition.placement):
        a, b = bounds[stage], bounds[stage + 1]
        speed = problem.devices[device].speed
        work = sum(problem.times_us[a:b]) / replicas / speed + sum(problem.fixed_us[a:b]) / speed
        work_us.append(work)
        time = work
        if problem.message_us:
            time += problem.message_us[a] / replicas if stage > 0 else 0
            time += problem.message_us[b] / replicas if stage < last else 0
        if replicas > 1 and problem.reduce_us_per_byte:
            reduced = sum(problem.parameter_bytes[a:b]) * 2 * (replicas - 1) / replicas
            time += problem.reduce_us_per_byte[device] * reduced
        if replicas > 1 and problem.reduce_latency_us:
            time += problem.reduce_latency_us[device] * 2 * (replicas - 1)
        if stage < last:
            option = problem.options[partition.options[stage]]
            time += option.before_us[b] / speed / replicas if option.before_us else 0
        groups[-1] += time
        if stage == last:
            break
        other, count = partition.placement[stage + 1]
        fewer = min(replicas, count)
        rate = problem.bandwidth[device][other] * fewer / 1e6 if problem.bandwidth else None
        forth = problem.nbytes[b] if problem.nbytes else 0
        back = problem.back_nbytes[b] if problem.back_nbytes else 0
        if option.locked:
            groups[-1] += 2 * problem.latency_us[device][other] if problem.latency_us else 0
            groups[-1] += (forth + back) / rate if rate else 0
        else:
            groups.append(0.0)
            busy.append(max(forth, back) / rate if rate else 0)
    units = 0
    for option_index, gap in zip(partition.options, partition.cuts, strict=True):
        column = problem.options[option_index].penalty_units
        units += column[gap] if column else 0
    step = max(*groups, *busy)
    return Judged(partition, step, units, step * (1 + problem.unit * units), tuple(work_us))
