"""When each stage was predicted to do what, and the trace of a bench: predicted beside measured.

A plan says what every part takes; `dnic.schedule` simulates the stages with them, in the engine's
order, and tells when each part ends. The optimizer's update and the messages are one part, because
a plan has only their sum: what a stage is busy beside its passes and heads.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from dnic.partition.plan import Plan, PlannedInterface
from dnic.report.trace import chrome_trace
from dnic.runtime.laps import TRACED_STEPS, read_laps
from dnic.runtime.metrics import replace_text
from dnic.runtime.stopwatch import Lap
from dnic.schedule.simulate import (
    Action,
    Channel,
    Compute,
    Receive,
    Send,
    StepDone,
    Wire,
    simulate,
)

# Until then the windows fill.
_FILLING_STEPS = 20
_PREDICTED = "predicted"


def write_trace(file: Path, laps: Path, names: Sequence[str], plan: Plan) -> None:
    """Writes a trace of one run of each variant, and of the prediction.

    Args:
        file: for Perfetto (or chrome://tracing).
        laps: a folder with a folder of laps for each variant.
        names: of the variants.
        plan: whose decoupled stages are shown as predicted.
    """
    rows = {name: read_laps(laps / name) for name in names}
    if len(plan.stages) > 1:
        rows[f"decoupled, {_PREDICTED}"] = predicted(plan)
    replace_text(file, json.dumps(chrome_trace(rows)) + "\n")


def predicted(plan: Plan, steps: int = TRACED_STEPS) -> dict[int, list[Lap]]:
    """The laps of the last of so many steps of every stage, as the plan would have them.

    Args:
        plan: of decoupled stages.
        steps: to show.
    """
    programs = [_program(plan, stage, steps + _FILLING_STEPS) for stage in range(len(plan.stages))]
    channels, wires = _channels(plan.interfaces)
    # A step that is done after every action: so the simulation tells when each ends.
    marked = [[action for _, us in program for action in (us, StepDone())] for program in programs]
    run = simulate(marked, channels, wires)
    shown: dict[int, list[Lap]] = {}
    for stage, (program, ends_us) in enumerate(zip(programs, run.ends_us, strict=True)):
        laps = [
            Lap(name, begin / 1e6, end / 1e6, max(0.0, (end - begin - _us(action)) / 1e6))
            for (name, action), (begin, end) in zip(program, pairwise((0.0, *ends_us)), strict=True)
        ]
        first = len(laps) * _FILLING_STEPS // (steps + _FILLING_STEPS)
        shown[stage] = laps[first:]
    return shown


def _us(action: Action) -> float:
    return 0.0 if isinstance(action, StepDone) else action.us


def _channels(interfaces: Sequence[PlannedInterface]) -> tuple[list[Channel], list[Wire]]:
    """Channels `2k` and `2k + 1`, each on a wire of its own, are interface `k`'s two directions."""
    channels, wires = [], []
    for number, interface in enumerate(interfaces):
        slots = None if interface.gradient == "exact" else interface.window + 1
        for direction in (0, 1):
            channels.append(Channel(2 * number + direction, 0.0, slots))
            wires.append(Wire(latency_us=interface.transfer_us))
    return channels, wires


def _program(plan: Plan, stage: int, steps: int) -> list[tuple[str, Action]]:
    """What a stage does, by name, in the engine's order."""
    here = plan.stages[stage]
    below = [k for k, interface in enumerate(plan.interfaces) if interface.to == stage]
    above = [k for k, interface in enumerate(plan.interfaces) if interface.source == stage]
    returning = [k for k, i in enumerate(plan.interfaces) if i.differentiable]
    heads = [i.head for i in (plan.interfaces[k] for k in above) if i.head is not None]
    head_us, learn_us = sum(h.forward_us for h in heads), sum(h.train_us for h in heads)
    rest_us = _rest_us(plan, stage, here.forward_us + here.backward_us + head_us + learn_us)
    program: list[tuple[str, Action]] = []
    for step in range(steps):
        program += [("receive", Receive(2 * k)) for k in below]
        program.append(("forward", Compute(here.forward_us)))
        program += [("send", Send(2 * k)) for k in above]
        exact = [k for k in above if k in returning and plan.interfaces[k].gradient == "exact"]
        program += [("head", Receive(2 * k + 1)) for k in exact]
        if heads:
            program.append(("head", Compute(head_us)))
        program.append(("backward", Compute(here.backward_us)))
        program += [("send back", Send(2 * k + 1)) for k in below if k in returning]
        late = [k for k in above if k in returning and k not in exact]
        program += [("take", _taken(plan, k, step)) for k in late]
        program.append(("update, messages", Compute(rest_us)))
        if heads:
            program.append(("learn", Compute(learn_us)))
    return program


def _taken(plan: Plan, interface: int, step: int) -> Action:
    """The gradient of some steps ago; nothing before there is one."""
    return Receive(2 * interface + 1) if step >= plan.interfaces[interface].window else Compute(0.0)


def _rest_us(plan: Plan, stage: int, known_us: float) -> float:
    """What a stage is predicted to be busy beside what the plan has by name."""
    for alternative in plan.prediction.alternatives:
        if alternative.mode == "decoupled" and alternative.stages == len(plan.stages):
            # Replicas of a stage are as busy as one another.
            device = stage * len(alternative.busy) // alternative.stages
            return max(0.0, alternative.busy[device] * alternative.step_us - known_us)
    return 0.0
