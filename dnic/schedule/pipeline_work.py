"""A pipeline as data: who carries out which pass, with which messages; its program and its memory.

A device sends without waiting, and its receives are posted ahead. `posted_ahead=False` is how
`torch.distributed.pipelining` runs over gloo: each message waits for its receive.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil

from dnic.schedule.orders import Order, Pass, in_flight
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
from dnic.schedule.work import CutWork, Machine, StageWork


@dataclass(frozen=True)
class Pipeline:
    """Stages in a chain, stage `k` on device `k mod devices`.

    Attributes:
        stages, cuts: of the chain; gradients are exact whatever the cuts' sources.
        orders: the passes of each device in one step. A backward pass in two parts is started
            twice, but for the first stage's, whose input needs no gradient.
        microbatches: into which the batch is divided.
        machine: `step_us` and `microbatch_us` count.
    """

    stages: Sequence[StageWork]
    cuts: Sequence[CutWork]
    orders: Sequence[Order]
    microbatches: int
    machine: Machine

    @property
    def devices(self) -> int:
        """How many there are."""
        return len(self.orders)

    @property
    def share(self) -> float:
        """Part of the batch in a microbatch."""
        return 1 / self.microbatches

    def forward_us(self, stage: int) -> float:
        """One microbatch forward, messages left out."""
        return self.machine.microbatch_us + self.stages[stage].forward_at(self.share)

    def backward_us(self, stage: int) -> float:
        """One microbatch back, messages left out."""
        return self.machine.microbatch_us + self.stages[stage].backward_at(self.share)

    def backward_part_us(self, step: Pass) -> float:
        """A backward pass, or the part of it that is done."""
        k = step.stage
        if step.part == "whole" or (k == 0 and step.part == "weight"):
            return self.backward_us(k)
        if k == 0:
            return 0.0
        part_us = self.stages[k].weight_at(self.share)
        if step.part == "input":
            part_us = self.stages[k].backward_at(self.share) - part_us
        return self.machine.microbatch_us + part_us * (1 + self.machine.division)

    def start_us(self, device: int) -> float:
        """What a device does before its first pass of a step."""
        return self.machine.step_us + (self.stages[0].loader_us if device == 0 else 0.0)

    def update_us(self, device: int) -> float:
        """The optimizer's steps of all stages of a device."""
        return sum(stage.update_us for stage in self.stages[device :: self.devices])

    def message_us(self, cut: int) -> float:
        """Processor time of an activation's message on one end; nothing on one device."""
        return self.cuts[cut].message_at(self.share) if self.devices > 1 else 0.0

    def back_message_us(self, cut: int) -> float:
        """Processor time of a gradient's message on one end; nothing on one device."""
        return self.cuts[cut].back_message_at(self.share) if self.devices > 1 else 0.0

    def busy_us(self) -> list[float]:
        """Processor time of each device in one step."""
        last = len(self.stages) - 1
        divided = self.orders[0][-1].part != "whole"
        busy = []
        for device in range(self.devices):
            each = 0.0
            for k in range(device, len(self.stages), self.devices):
                each += self.forward_us(k) + self.backward_us(k)
                if divided and k:
                    more_us = self.stages[k].backward_at(self.share) * self.machine.division
                    each += self.machine.microbatch_us + more_us
                for cut in (k - 1, k):
                    if 0 <= cut < last:
                        each += self.message_us(cut) + self.back_message_us(cut)
            own_us = self.start_us(device) + self.update_us(device)
            busy.append(own_us + self.microbatches * each)
        return busy

    def peak_memory_bytes(self) -> list[int]:
        """Weights and their state, activations in flight, and a stage's inputs beside them."""
        peaks = []
        for device, order in enumerate(self.orders):
            held = range(device, len(self.stages), self.devices)
            state = sum(self.stages[k].state_bytes for k in held)
            # Stages of one device are of like size; the largest stands for each.
            most = max(
                self.stages[k].activation_bytes + (self.cuts[k - 1].nbytes if k else 0)
                for k in held
            )
            peaks.append(state + ceil(in_flight(order) * most * self.share))
        return peaks

    def link_bytes(self) -> list[tuple[int, int]]:
        """Bytes over each cut in one step, forward and back."""
        if self.devices == 1:
            return [(0, 0)] * len(self.cuts)
        return [(cut.nbytes, cut.back_nbytes) for cut in self.cuts]

    def simulate(self, steps: int, *, posted_ahead: bool = True) -> Run:
        """Run it; channels `2k` and `2k + 1` are cut `k`'s, forward and back."""
        slots = None if posted_ahead else 0
        pairs: dict[tuple[int, int], int] = {}
        wires: list[Wire] = []
        channels: list[Channel] = []
        for k, cut in enumerate(self.cuts):
            sizes = (cut.nbytes * self.share, cut.back_nbytes * self.share)
            ways = (
                ((k % self.devices, (k + 1) % self.devices), sizes[0]),
                (
                    ((k + 1) % self.devices, k % self.devices),
                    sizes[1],
                ),
            )
            for pair, nbytes in ways:
                if pair not in pairs:
                    pairs[pair] = len(wires)
                    wires.append(Wire(cut.link.bandwidth_bytes_per_s, cut.link.latency_us))
                channels.append(Channel(pairs[pair], nbytes, slots))
        programs = [self._program(device, steps) for device in range(self.devices)]
        return simulate(programs, channels, wires)

    def _program(self, device: int, steps: int) -> Iterator[Action]:
        actions: list[Action] = [Compute(self.start_us(device))]
        for step in self.orders[device]:
            actions += self._pass(step)
        actions += [Compute(self.update_us(device)), StepDone()]
        for _ in range(steps):
            yield from actions

    def _pass(self, step: Pass) -> list[Action]:
        k, last = step.stage, len(self.stages) - 1
        actions: list[Action] = []
        alone = self.devices == 1
        if step.forward:
            if k > 0 and not alone:
                actions.append(Receive(2 * (k - 1), self.message_us(k - 1)))
            actions.append(Compute(self.forward_us(k)))
            if k < last and not alone:
                actions.append(Send(2 * k, self.message_us(k)))
            return actions
        if step.part == "weight":
            return [Compute(self.backward_part_us(step))]
        if k < last and not alone:
            actions.append(Receive(2 * k + 1, self.back_message_us(k)))
        actions.append(Compute(self.backward_part_us(step)))
        if k > 0 and not alone:
            actions.append(Send(2 * (k - 1) + 1, self.back_message_us(k - 1)))
        return actions
