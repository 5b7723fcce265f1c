"""Which devices are in use behind a part of the chain of stages: the states of the search.

A state says how many devices of each class are taken. Stages take devices one after the other, so
that the states form a graph without cycles; listed here in an order in which every edge points
forward. Where the counts of the classes multiply to too many states, only chains are listed in
which the devices of each class follow one another.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Protocol

from dnic.partition.exact.problem import Problem

MOST_COUNTS = 5_000
MOST_EDGES = 20_000
MOST_PAIRS = 60_000
_MOST_FREE_CLASSES = 6
_Key = tuple[int, ...]


@dataclass(frozen=True)
class Edge:
    """A stage on `replicas` devices of the class `device`, behind those of the state `source`."""

    source: int
    device: int
    replicas: int


@dataclass(frozen=True)
class State:
    """Devices in use.

    Attributes:
        stages: how many stages there are so far; None where that is not counted.
        incoming: the stages that may have come last; empty for the state without stages.
        used: most work that the devices in use do in a time of 1.
        left: most work that the devices left could do in a time of 1.
    """

    stages: int | None
    incoming: tuple[Edge, ...]
    used: float
    left: float


@dataclass(frozen=True)
class StateGraph:
    """All states, the empty one first.

    Attributes:
        states: every edge points to a later one; by number of stages where that is counted.
    """

    states: tuple[State, ...]


def state_graph(problem: Problem, counted: bool, most_stages: int) -> StateGraph:
    """The states of up to `most_stages` stages.

    Args:
        problem: its devices and replica counts.
        counted: whether states tell how many stages there are.
        most_stages: no more than so many.
    """
    counted = counted or most_stages < problem.device_count
    keys: _Keys = _Counts(problem) if any_order(problem) else _ClassByClass(problem)
    return StateGraph(_grown(problem, keys, counted, most_stages))


def any_order(problem: Problem) -> bool:
    """Whether every order of the devices is searched."""
    devices = problem.devices
    states = prod(one.count + 1 for one in devices)
    # What each state costs: every kind of stage before a cut with every kind behind it.
    kinds = len(devices) * len(problem.replica_counts)
    return len(devices) == 1 or (states <= MOST_COUNTS and states * kinds**2 <= MOST_PAIRS)


def can_count(problem: Problem, stages: int) -> bool:
    """Whether states that tell the number of stages are few enough to be searched many times."""
    if problem.replica_counts == (1,) or problem.stages is not None:
        return True
    states = prod(one.count + 1 for one in problem.devices)
    return states * len(problem.devices) * len(problem.replica_counts) * stages <= MOST_EDGES


def orders_searched(problem: Problem) -> str:
    """Which orders of the devices are searched."""
    if any_order(problem):
        return "every order of the devices"
    orders = _ClassByClass(problem).orders
    number = str(len(orders)) if orders else "all"
    return f"{number} orders of the classes, the devices of each class together"


class _Keys(Protocol):
    """Names for states, and from which to which a stage leads."""

    start: _Key

    def after(self, key: _Key, device: int, replicas: int) -> _Key | None:
        """The key after a stage; None where no device is left."""

    def rank(self, key: _Key) -> _Key:
        """Larger after each stage."""

    def free(self, key: _Key) -> tuple[int, ...]:
        """Devices of each class that may still be taken."""

    def stages(self, key: _Key) -> int | None:
        """How many stages there are; None where the key does not tell."""


class _Counts:
    """Any order of devices: how many of each class are in use."""

    def __init__(self, problem: Problem) -> None:
        self.counts = [one.count for one in problem.devices]
        self.single = problem.replica_counts == (1,)
        self.start: _Key = (0,) * len(self.counts)

    def after(self, key: _Key, device: int, replicas: int) -> _Key | None:
        """The key after a stage; None where no device is left."""
        taken = key[device] + replicas
        if taken > self.counts[device]:
            return None
        return (*key[:device], taken, *key[device + 1 :])

    def rank(self, key: _Key) -> _Key:
        """Larger after each stage."""
        return key

    def free(self, key: _Key) -> tuple[int, ...]:
        """Devices of each class that may still be taken."""
        return tuple(count - taken for count, taken in zip(self.counts, key, strict=True))

    def stages(self, key: _Key) -> int | None:
        """As many as devices, unless there are replicas."""
        return sum(key) if self.single else None


class _ClassByClass:
    """The devices of each class follow one another: finished classes, this class, how many of it.

    Any class may come next, up to six classes; beyond, they come in a few orders, by speed or by
    memory.
    """

    def __init__(self, problem: Problem) -> None:
        devices = problem.devices
        self.counts = [one.count for one in devices]
        self.start: _Key = (0, -1, 0)
        self.orders: list[list[int]] = []
        self.prefixes: set[int] = set()
        if len(devices) > _MOST_FREE_CLASSES:
            for column in (
                [one.speed for one in devices],
                [float("inf") if one.memory_bytes is None else one.memory_bytes for one in devices],
            ):
                upwards = sorted(range(len(devices)), key=column.__getitem__)
                self.orders += [upwards, upwards[::-1]]
            for order in self.orders:
                for end in range(1, len(order) + 1):
                    self.prefixes.add(sum(1 << device for device in order[:end]))

    def after(self, key: _Key, device: int, replicas: int) -> _Key | None:
        """The key after a stage; None where no device is left."""
        finished, current, taken = key
        if device == current:
            return (
                (finished, current, taken + replicas)
                if self._has(device, taken + replicas)
                else None
            )
        if current >= 0:
            finished |= 1 << current
        if finished >> device & 1 or not self._has(device, replicas):
            return None
        if self.prefixes and finished | 1 << device not in self.prefixes:
            return None
        return finished, device, replicas

    def _has(self, device: int, count: int) -> bool:
        return count <= self.counts[device]

    def rank(self, key: _Key) -> _Key:
        """Larger after each stage."""
        return key[0].bit_count() + (key[1] >= 0), key[2]

    def free(self, key: _Key) -> tuple[int, ...]:
        """Devices of each class that may still be taken."""
        finished, current, taken = key
        return tuple(
            0 if finished >> device & 1 else count - taken * (device == current)
            for device, count in enumerate(self.counts)
        )

    def stages(self, key: _Key) -> int | None:
        """Unknown: finished classes need not be used up."""
        return 0 if key == self.start else None


def _grown(problem: Problem, keys: _Keys, counted: bool, most_stages: int) -> tuple[State, ...]:
    """All states that can be reached, in order."""
    own = keys.stages(keys.after(keys.start, 0, 1) or keys.start) is not None
    counting = counted and not own
    start = (keys.start, 0)
    incoming: dict[tuple[_Key, int], list[tuple[tuple[_Key, int], int, int]]] = {start: []}
    frontier = [start]
    while frontier:
        ahead = []
        for name in frontier:
            key, stages = name
            if (keys.stages(key) if own else stages) == most_stages:
                continue
            for device in range(len(problem.devices)):
                for replicas in problem.replica_counts:
                    after = keys.after(key, device, replicas)
                    if after is None:
                        continue
                    other = (after, stages + counting)
                    if other not in incoming:
                        incoming[other] = []
                        ahead.append(other)
                    incoming[other].append((name, device, replicas))
        frontier = ahead

    def order(name: tuple[_Key, int]) -> tuple[int, _Key]:
        return (keys.stages(name[0]) or 0 if own else name[1]), keys.rank(name[0])

    names = sorted(incoming, key=order)
    place = {name: index for index, name in enumerate(names)}
    speeds = [one.speed for one in problem.devices]
    fastest = max(speeds) * max(problem.replica_counts)
    states = []
    for name in names:
        key, stages = name
        count = keys.stages(key) if own else stages if counting else None
        free = keys.free(key)
        left = sum(speed * number for speed, number in zip(speeds, free, strict=True))
        if count is not None:
            left = min(left, fastest * (most_stages - count))
        used = sum(
            speed * (one.count - number)
            for speed, one, number in zip(speeds, problem.devices, free, strict=True)
        )
        edges = tuple(Edge(place[source], k, r) for source, k, r in incoming[name])
        states.append(State(count, edges, used, left))
    return tuple(states)
