"""What the exact partition solver takes and gives, as numbers.

A model of n operations in execution order is cut into contiguous stages; gap g lies before
operation g, so that there are n + 1 gaps. A stage [i, j) runs on r interchangeable devices of one
class (replicas, data parallel). What its step costs, with `s` the speed of the class:

    sum(times_us[i:j]) / (s r) + sum(fixed_us[i:j]) / s
    + before_us[j] / (s r) of the option chosen at j
    + (message_us[i] + message_us[j]) / r
    + reduce_us_per_byte 2 (r - 1) / r sum(parameter_bytes[i:j]) + reduce_latency_us 2 (r - 1)

What it holds: sum(parameter_memory[i:j]) + sum(activation_memory[i:j]) / r + after_bytes[i] +
before_bytes[j] of the option at j. Nothing is added at gaps 0 and n, where there is no cut.

Stages joined by locked cuts wait for one another: their times add up, and for each such cut
2 latency_us + (nbytes + back_nbytes) / (min(r, r') bandwidth). A decoupled cut only keeps its link
busy, max(nbytes, back_nbytes) / (min(r, r') bandwidth). The step is the longest of all these; the
objective is step_us (1 + unit * sum of the penalty units of the cuts).
"""

from __future__ import annotations

from dataclasses import dataclass

TOLERANCE = 0.06
IDLE_SHARE = 0.1


@dataclass(frozen=True)
class DeviceClass:
    """Interchangeable devices.

    Attributes:
        count: how many.
        speed: work of `times_us` is divided by it; above 0.
        memory_bytes: of one device; None for no limit.
    """

    count: int
    speed: float = 1.0
    memory_bytes: int | None = None


@dataclass(frozen=True)
class Option:
    """What may happen at a cut. Columns have n + 1 entries; empty for zeros, or all allowed.

    Attributes:
        name: for people.
        locked: the stages beside the cut wait for one another; else the cut is decoupled.
        before_us: work that it adds to the stage before, on a device of speed 1.
        before_bytes: memory that it adds to each device of the stage before.
        penalty_units: whole numbers, 0 or more.
        allowed: where it may be chosen.
    """

    name: str = ""
    locked: bool = False
    before_us: tuple[float, ...] = ()
    before_bytes: tuple[int, ...] = ()
    penalty_units: tuple[int, ...] = ()
    allowed: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Problem:
    """What is to be cut. An empty tuple stands for zeros; all numbers are 0 or more.

    Attributes:
        times_us: for each operation, work of a step that scales with the batch.
        candidates: gaps that may be cut, ascending, each in 1..n-1.
        devices: their classes.
        options: what may happen at a cut; one is chosen for each.
        fixed_us: for each operation, work that replicas do not share.
        fixed: gaps that must be cut.
        keep_together: half-open ranges of operations that one stage must hold.
        max_stages: as many at most; None for one per device.
        stages: exactly so many; None for the fewest near the optimum.
        replica_counts: how many replicas a stage may have, ascending.
        bandwidth: bytes/s between devices of two classes, `bandwidth[a][b]`, symmetric; empty for
            unlimited.
        latency_us: likewise, one way.
        reduce_us_per_byte: for each class, of the all-reduce of a replicated stage's gradients.
        reduce_latency_us: for each class, of the same.
        parameter_bytes: for each operation, bytes of gradients to reduce.
        parameter_memory: for each operation, bytes held by every replica.
        activation_memory: for each operation, bytes shared out over the replicas.
        after_bytes: for each gap, bytes that a cut there adds to each device of the stage after.
        message_us: for each gap, time that each stage beside a cut there spends on messages.
        nbytes: for each gap, bytes of the message forwards.
        back_nbytes: for each gap, of the one backwards.
        max_decoupled: as many decoupled cuts at most; None for no limit.
        unit: what one unit of penalty adds to the factor on the step.
        preferences: for each gap how little a cut there is liked; smaller is better.
        tolerance: by which share the objective may exceed the optimum for the sake of fewer stages
            and better liked cuts.
        idle_share: a stage is idle whose operations take less than this share of the optimal step.
    """

    times_us: tuple[float, ...]
    candidates: tuple[int, ...]
    devices: tuple[DeviceClass, ...]
    options: tuple[Option, ...] = (Option(),)
    fixed_us: tuple[float, ...] = ()
    fixed: tuple[int, ...] = ()
    keep_together: tuple[tuple[int, int], ...] = ()
    max_stages: int | None = None
    stages: int | None = None
    replica_counts: tuple[int, ...] = (1,)
    bandwidth: tuple[tuple[float, ...], ...] = ()
    latency_us: tuple[tuple[float, ...], ...] = ()
    reduce_us_per_byte: tuple[float, ...] = ()
    reduce_latency_us: tuple[float, ...] = ()
    parameter_bytes: tuple[int, ...] = ()
    parameter_memory: tuple[int, ...] = ()
    activation_memory: tuple[int, ...] = ()
    after_bytes: tuple[int, ...] = ()
    message_us: tuple[float, ...] = ()
    nbytes: tuple[int, ...] = ()
    back_nbytes: tuple[int, ...] = ()
    max_decoupled: int | None = None
    unit: float = 0.001
    preferences: tuple[tuple[int, ...], ...] = ()
    tolerance: float = TOLERANCE
    idle_share: float = IDLE_SHARE

    @property
    def device_count(self) -> int:
        """Of all classes together."""
        return sum(one.count for one in self.devices)

    @property
    def most_stages(self) -> int:
        """That there may be: as many as asked for, at most one per device."""
        most = self.device_count if self.max_stages is None else self.max_stages
        return min(most, self.device_count) if self.stages is None else self.stages

    @property
    def open_gaps(self) -> tuple[int, ...]:
        """Candidates that split no group that is to stay together and allow some option."""
        # Options without a column are allowed everywhere.
        anywhere = any(not option.allowed for option in self.options)
        inside = {gap for a, b in self.keep_together for gap in range(a + 1, b)}
        return tuple(
            gap
            for gap in self.candidates
            if gap not in inside
            and (anywhere or any(option.allowed[gap] for option in self.options))
        )


@dataclass(frozen=True)
class Partition:
    """Where to cut and what runs where.

    Attributes:
        cuts: gaps, ascending.
        options: for each cut the index of its option.
        placement: for each stage the index of its class of devices and its number of replicas.
    """

    cuts: tuple[int, ...]
    options: tuple[int, ...]
    placement: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Solution:
    """The partition that was chosen, and the optimum that it is close to.

    Attributes:
        partition: what was chosen.
        step_us: its step.
        penalty: its penalty, `unit` times the sum of its cuts' units.
        objective: `step_us (1 + penalty)`, at most `1 + tolerance` times the optimum.
        optimum: the least objective possible (of those searched, see `exact`).
        optimum_us: the step of a partition with that objective.
        devices_used: for each class.
        exact: every order of the devices was considered; False only for many classes.
        searched: which orders were considered, and whether the fewest stages were looked for.
        examined: pairs of a state and a gap that were looked at: the work done.
    """

    partition: Partition
    step_us: float
    penalty: float
    objective: float
    optimum: float
    optimum_us: float
    devices_used: tuple[int, ...]
    exact: bool
    searched: str
    examined: int

    @property
    def cuts(self) -> tuple[int, ...]:
        """Gaps, ascending."""
        return self.partition.cuts
