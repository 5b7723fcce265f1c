"""Why no partition satisfies the constraints, and what would."""

from __future__ import annotations

from dataclasses import replace

from dnic.errors import PartitionError
from dnic.partition.exact.evaluate import bytes_of
from dnic.partition.exact.problem import DeviceClass, Problem
from dnic.partition.exact.search import Search

_MOST_EXTRA_DEVICES = 4096


def explain(problem: Problem) -> PartitionError:
    """The constraint that fails and by how much, for a problem that has no solution."""
    unlimited = replace(
        problem, devices=tuple(replace(one, memory_bytes=None) for one in problem.devices)
    )
    if Search(unlimited, stages=problem.stages).any() is None:
        return _no_combination(problem)
    return _too_little_memory(problem)


def _no_combination(problem: Problem) -> PartitionError:
    asked = "" if problem.stages is None else f" into {problem.stages} stages"
    limits = [f"{len(problem.open_gaps)} cut points"]
    if problem.fixed:
        limits.append(f"{len(set(problem.fixed))} cuts asked for")
    if problem.max_decoupled is not None:
        limits.append(f"at most {problem.max_decoupled} decoupled cuts")
    if problem.replica_counts != (1,):
        limits.append(f"stages of {', '.join(map(str, problem.replica_counts))} replicas")
    return PartitionError(
        f"no partition{asked} on {problem.device_count} devices",
        expected="with " + ", ".join(limits),
        hint="ask for less: fewer cuts, another number of stages, or more decoupled cuts",
    )


def _too_little_memory(problem: Problem) -> PartitionError:
    """The partition that is nearest to fitting, and what it lacks."""

    def possible(extra: float) -> Search | None:
        search = Search(problem, stages=problem.stages, extra_bytes=extra)
        return search if search.any() is not None else None

    low, high = 0.0, 1.0
    while possible(high) is None:
        low, high = high, high * 4
    while high - low > max(1.0, low * 1e-3):
        middle = (low + high) / 2
        low, high = (low, middle) if possible(middle) else (middle, high)
    search = possible(high)
    candidate = None if search is None else search.any()
    assert search is not None
    assert candidate is not None
    partition = candidate.partition
    worst = (-float("inf"), 0, 0.0, 0.0)
    for stage, held in enumerate(bytes_of(search.terrain, partition)):
        device, _ = partition.placement[stage]
        limit = problem.devices[device].memory_bytes
        if limit is not None:
            worst = max(worst, (held - limit, stage, held, float(limit)))
    excess, stage, held, limit_bytes = worst
    of_class = f"a device of group {partition.placement[stage][0]}"
    device_name = f"device {stage}" if len(problem.devices) == 1 else of_class
    stages = len(partition.placement)
    return PartitionError(
        f"stage {stage} needs {_size(held)}, {device_name} has {_size(limit_bytes)}",
        expected=f"{stages} stage(s) that each fit the memory of their device; "
        f"this is the nearest to it, {_size(excess)} too much",
        hint=f"{_enough(problem)}; a smaller batch, or an optimizer that keeps less state",
    )


def _enough(problem: Problem) -> str:
    """How many devices would fit."""
    room = [one.memory_bytes for one in problem.devices]
    largest = max(
        range(len(room)), key=lambda k: float("inf") if room[k] is None else float(room[k] or 0)
    )

    def fits(count: int) -> bool:
        grown: list[DeviceClass] = list(problem.devices)
        grown[largest] = replace(grown[largest], count=count)
        total = sum(one.count for one in grown)
        asked = replace(problem, devices=tuple(grown), stages=None, max_stages=total)
        return Search(asked).any() is not None

    low = problem.devices[largest].count
    most = min(len(problem.open_gaps) + 1, _MOST_EXTRA_DEVICES)
    high = low + 1
    while high < most and not fits(high):
        low, high = high, min(2 * high, most)
    if high > most or not fits(high):
        if problem.stages is not None and fits(problem.devices[largest].count):
            return "another number of stages would fit"
        return "no number of devices would fit: some operations need more than one has"
    if problem.stages is not None and fits(problem.devices[largest].count):
        return "another number of stages would fit"
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fits(middle) else (middle, high)
    others = sum(one.count for one in problem.devices) - problem.devices[largest].count
    if others:
        return f"{high} devices of group {largest} would fit"
    return f"{high} devices would fit"


def _size(nbytes: float) -> str:
    """`21.4 GiB`."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(nbytes) < 1024:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1024
    return f"{nbytes:.3g} GiB"
