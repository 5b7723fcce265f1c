"""The engine's step as data: what each stage does in it, and its program for the simulation.

The order is `dnic.runtime.engine`'s, numbers as there: 1 receive, 2 forward, 3 send, 4 gradient,
5 backward, 6 send back, 7 take gradient t-w, 8 update, 9 train the heads. A `stale` gradient is
awaited in (4), the one of batch t-w, and backward goes through batch t-w.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil

from dnic.schedule.simulate import (
    Action,
    Channel,
    Compute,
    Receive,
    Run,
    Send,
    StepDone,
    Wire,
    simulate,
)
from dnic.schedule.work import CutWork, Machine, StageWork, ends

# Weights of a head, their gradients, and two of Adam's.
_HEAD_COPIES = 4
# All-reduces of next to nothing when a head learns: its gradients' scale, its inputs' statistics.
_SCALARS = 2
_SCALAR_BYTES = 4


@dataclass(frozen=True)
class EngineWork:
    """Stages and cuts as the engine runs them; replicas of a stage go in step and count as one.

    Attributes:
        stages: of the model.
        cuts: between them; several may leave or reach a stage, and may skip stages.
        machine: its `step_us` and its all-reduce count.
    """

    stages: Sequence[StageWork]
    cuts: Sequence[CutWork]
    machine: Machine

    @cached_property
    def ends(self) -> list[tuple[int, int]]:
        """Source and destination of each cut."""
        return ends(self.cuts)

    @cached_property
    def below(self) -> list[list[int]]:
        """Cuts that reach each stage."""
        return self._at_stages(1)

    @cached_property
    def above(self) -> list[list[int]]:
        """Cuts that leave each stage."""
        return self._at_stages(0)

    def _at_stages(self, end: int) -> list[list[int]]:
        at: list[list[int]] = [[] for _ in self.stages]
        for cut, both in enumerate(self.ends):
            at[both[end]].append(cut)
        return at

    def start_us(self, stage: int) -> float:
        """Before (1)."""
        work = self.stages[stage]
        first = not self.below[stage]
        return self.machine.step_us + (work.loader_us / work.replicas if first else 0.0)

    def forward_us(self, stage: int) -> float:
        """(2)."""
        return self.stages[stage].forward_at(1 / self.stages[stage].replicas)

    def backward_us(self, stage: int) -> float:
        """(5)."""
        return self.stages[stage].backward_at(1 / self.stages[stage].replicas)

    def update_us(self, stage: int) -> float:
        """(8), with the all-reduce among the stage's replicas before it."""
        return self.stages[stage].update_us + self.reduce_us(stage)

    def reduce_us(self, stage: int) -> float:
        """The all-reduce among a stage's replicas, less what backward hides."""
        work, machine = self.stages[stage], self.machine
        reduce_us = machine.allreduce_us(work.gradient_bytes, work.replicas)
        hidden_us = min(reduce_us, self.backward_us(stage))
        return reduce_us - machine.overlap * hidden_us

    def predict_us(self, cut: int) -> float:
        """(4): the head's part, on a replica's share of the batch."""
        work = self.cuts[cut]
        return work.predict_us / self._replicas(cut) if work.has_head else 0.0

    def learn_us(self, cut: int) -> float:
        """(9), with what the stage's replicas average in it."""
        work, replicas = self.cuts[cut], self._replicas(cut)
        if not work.has_head:
            return 0.0
        average_us = 0.0
        if work.averaged_bytes:
            average_us += self.machine.allreduce_us(work.averaged_bytes, replicas)
            average_us += _SCALARS * self.machine.allreduce_us(_SCALAR_BYTES, replicas)
        return work.learn_us / replicas + average_us / work.learns_every

    def _replicas(self, cut: int) -> int:
        return self.stages[self.ends[cut][0]].replicas

    def message_us(self, cut: int, end: int) -> float:
        """Processor time of an activation's message; end 0 sends, end 1 receives."""
        return self.cuts[cut].message_at(1 / self.stages[self.ends[cut][end]].replicas)

    def back_message_us(self, cut: int, end: int) -> float:
        """Processor time of a gradient's message; end 0 receives, end 1 sends."""
        work = self.cuts[cut]
        if not work.returns:
            return 0.0
        return work.back_message_at(1 / self.stages[self.ends[cut][end]].replicas)

    def wire_share(self, cut: int) -> float:
        """Part of the batch over one wire: the side with fewer replicas has as many wires."""
        return 1 / min(self.stages[stage].replicas for stage in self.ends[cut])

    def receive_us(self, stage: int) -> float:
        """(1)."""
        return sum(self.message_us(cut, 1) for cut in self.below[stage])

    def send_us(self, stage: int) -> float:
        """(3)."""
        return sum(self.message_us(cut, 0) for cut in self.above[stage])

    def send_back_us(self, stage: int) -> float:
        """(6)."""
        return sum(self.back_message_us(cut, 1) for cut in self.below[stage])

    def take_us(self, stage: int) -> float:
        """Gradients' messages in (4) or (7)."""
        return sum(self.back_message_us(cut, 0) for cut in self.above[stage])

    def heads_us(self, stage: int) -> tuple[float, float]:
        """Prediction in (4) and learning in (9)."""
        cuts = self.above[stage]
        return sum(map(self.predict_us, cuts)), sum(map(self.learn_us, cuts))

    def busy_us(self, stage: int) -> float:
        """Processor time of a stage in one step."""
        passes_us = self.forward_us(stage) + self.backward_us(stage)
        messages_us = self.receive_us(stage) + self.send_us(stage)
        messages_us += self.take_us(stage) + self.send_back_us(stage)
        own_us = self.start_us(stage) + self.update_us(stage)
        return own_us + passes_us + messages_us + sum(self.heads_us(stage))

    def staleness(self) -> list[int]:
        """Updates of each stage between an activation and the update with its gradient.

        A batch whose gradient is `stale` here comes back through stages that are late themselves.
        Where several late gradients meet, the latest counts.
        """
        late = [0] * len(self.stages)
        for stage in reversed(range(len(self.stages))):
            for cut in self.above[stage]:
                work, to = self.cuts[cut], self.ends[cut][1]
                if work.source == "stale":
                    late[stage] = max(late[stage], work.window + late[to])
                elif work.source == "exact":
                    late[stage] = max(late[stage], late[to])
        return late

    def head_lateness(self) -> list[int]:
        """Updates between an activation and training its head with the true gradient."""
        late = self.staleness()
        return [
            cut.window + late[to] if cut.source in ("synthetic", "virtual") else 0
            for cut, (_, to) in zip(self.cuts, self.ends, strict=True)
        ]

    def peak_memory_bytes(self) -> list[int]:
        """Of one device of each stage.

        Weights and their state; activations of one batch, and of each batch more that a stale
        gradient is late, with the weights that it went forward with; `window + 1` buffers of each
        message on both of its ends; heads with Adam's state.
        """
        peaks = []
        late = self.staleness()
        for stage, work in enumerate(self.stages):
            share = 1 / work.replicas
            total = work.state_bytes + work.activation_bytes * share * (late[stage] + 1)
            total += work.parameter_bytes * late[stage]
            for cut in (*self.below[stage], *self.above[stage]):
                total += self._buffers(cut) * share
            heads = sum(self.cuts[cut].head_bytes for cut in self.above[stage])
            peaks.append(ceil(total) + _HEAD_COPIES * heads)
        return peaks

    def _buffers(self, cut: int) -> int:
        work = self.cuts[cut]
        slots = 1 if work.source == "exact" else work.window + 1
        return slots * (work.nbytes + (work.back_nbytes if work.returns else 0))

    def simulate(self, steps: int) -> Run:
        """Run so many steps, epoch's end left out; channels `2k`, `2k + 1` are cut `k`'s."""
        pairs: dict[tuple[int, int], int] = {}
        wires: list[Wire] = []
        channels: list[Channel] = []
        for cut, (source, to) in enumerate(self.ends):
            work, share = self.cuts[cut], self.wire_share(cut)
            slots = None if work.source == "exact" else work.window + 1
            ways = ((source, to), work.nbytes), ((to, source), work.back_nbytes)
            for pair, nbytes in ways:
                if pair not in pairs:
                    pairs[pair] = len(wires)
                    wires.append(Wire(work.link.bandwidth_bytes_per_s, work.link.latency_us))
                channels.append(Channel(pairs[pair], nbytes * share, slots))
        programs = [self._program(stage, steps) for stage in range(len(self.stages))]
        return simulate(programs, channels, wires)

    def _program(self, stage: int, steps: int) -> Iterator[Action]:
        predict_us, learn_us = self.heads_us(stage)
        for t in range(steps):
            yield Compute(self.start_us(stage))
            for cut in self.below[stage]:  # 1
                yield Receive(2 * cut, self.message_us(cut, 1))
            yield Compute(self.forward_us(stage))  # 2
            for cut in self.above[stage]:  # 3
                yield Send(2 * cut, self.message_us(cut, 0))
            yield from self._take(stage, t, ("exact", "stale"))  # 4
            yield Compute(predict_us + self.backward_us(stage))  # 4, 5
            for cut in self.below[stage]:  # 6
                if self.cuts[cut].returns:
                    yield Send(2 * cut + 1, self.back_message_us(cut, 1))
            yield from self._take(stage, t, ("synthetic", "virtual"))  # 7
            yield Compute(self.update_us(stage) + learn_us)  # 8, 9
            yield StepDone()

    def _take(self, stage: int, t: int, sources: tuple[str, ...]) -> Iterator[Action]:
        for cut in self.above[stage]:
            work = self.cuts[cut]
            due = work.source == "exact" or t >= work.window
            if work.source in sources and due:
                yield Receive(2 * cut + 1, self.back_message_us(cut, 0))
