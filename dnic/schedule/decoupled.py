"""Decoupled stages, and any mixture of decoupled cuts and locked groups, as the engine runs them.

The steady step time is the longest loop: the largest quotient of the time around a loop of actions
that wait for one another and the number of steps that the loop spans (the maximum cycle mean of a
max-plus system; Baccelli et al. 1992, "Synchronization and Linearity", section 2.5). In a chain
the loops are these, all others are made up of them:

- a stage's own step;
- a wire, busy with each message;
- from a stage's send up to some stage above, down again, and to the stage's next send. It spans one
  step, and `window` more for each cut whose gradient is taken that late.

So with one synthetic cut: `max(T_up, T_down, transfer, (RTT + 2 transfer + T_down + T_up) /
(window + 1))`, without what each stage does after its part of the loop: the engine sends before it
takes the gradient of t-w. Other graphs of stages are simulated.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from dnic.schedule.engine_work import EngineWork
from dnic.schedule.work import CutWork, Machine, Outcome, StageWork, check, is_chain, outcome

# Steps of a simulation: a multiple of all small numbers, because what happens repeats itself
# every `window + 1` steps. Before that the windows fill.
_MEASURED = 60
_FILLING = 200


def decoupled(
    stages: Sequence[StageWork],
    cuts: Sequence[CutWork],
    batch: int = 1,
    machine: Machine | None = None,
) -> Outcome:
    """The engine's steady state.

    Args:
        stages: with their replicas.
        cuts: each with the source of its gradient and its window.
        batch: samples in a batch.
        machine: `step_us` and the all-reduce among replicas count.

    Raises:
        PartitionError: a cut does not lead forward.
    """
    check(stages, cuts)
    work = EngineWork(tuple(stages), tuple(cuts), machine or Machine())
    chain = is_chain(stages, cuts)
    if chain:
        step_us, bottleneck = longest_loop(work)
    else:
        step_us = work.simulate(_FILLING + _MEASURED).step_us(_MEASURED)
        bottleneck = _slowest(work, step_us)
    replicas = [stage.replicas for stage in stages]
    memory = work.peak_memory_bytes()
    return outcome(
        _name(cuts),
        step_us,
        [work.busy_us(i) for i, count in enumerate(replicas) for _ in range(count)],
        batch=batch,
        peak_memory_bytes=[memory[i] for i, count in enumerate(replicas) for _ in range(count)],
        link_bytes=[(cut.nbytes, cut.back_nbytes if cut.returns else 0) for cut in cuts],
        staleness=work.staleness(),
        bottleneck=bottleneck,
        how="formula" if chain else "simulated",
        head_lateness=work.head_lateness(),
    )


def longest_loop(work: EngineWork) -> tuple[float, str]:
    """Step time of a chain in microseconds, and which loop decides it."""
    return max(_loops(work), key=lambda loop: loop[0])


def _loops(work: EngineWork) -> Iterator[tuple[float, str]]:
    for stage in range(len(work.stages)):
        yield work.busy_us(stage), f"stage{stage}"
    for k, cut in enumerate(work.cuts):
        share = work.wire_share(k)
        yield cut.occupancy_us(share), f"cut{k}: transfer"
        if cut.returns:
            yield cut.back_occupancy_us(share), f"cut{k}: transfer back"
            yield from _round_trips(work, k)
        else:
            # Nothing comes back but word of a free slot.
            away = work.message_us(k, 0) + work.message_us(k, 1) + cut.occupancy_us(share)
            yield (away + 2 * cut.link.latency_us) / (cut.window + 1), f"cut{k}: window"


def _round_trips(work: EngineWork, first: int) -> Iterator[tuple[float, str]]:
    """Loops from the stage below cut `first` to each stage that it waits for, and back."""
    cut = work.cuts[first]
    late_us = work.take_us(first) + work.update_us(first) + work.heads_us(first)[1]
    total_us = late_us + work.start_us(first) + _up_us(work, first)
    span = 1
    if cut.source in ("exact", "stale"):
        total_us += work.backward_us(first) + work.send_back_us(first)
    for k in range(first, len(work.cuts)):
        here = work.cuts[k]
        if not here.returns or (k > first and here.has_head):
            return
        share = work.wire_share(k)
        total_us += 2 * here.link.latency_us
        total_us += here.occupancy_us(share) + here.back_occupancy_us(share)
        span += 0 if here.source == "exact" else here.window
        top = k + 1
        if k > first:
            total_us += _up_us(work, k) + _down_us(work, k)
        within_us = _up_us(work, top) + work.heads_us(top)[0]
        within_us += work.backward_us(top) + work.send_back_us(top)
        if top < len(work.cuts) and not work.cuts[top].has_head:
            within_us += work.take_us(top)
        what = "window" if span > 1 else "locked"
        yield (total_us + within_us) / span, f"cut{first}: {what}"


def _up_us(work: EngineWork, stage: int) -> float:
    """From an activation's arrival to having sent the next one."""
    return work.receive_us(stage) + work.forward_us(stage) + work.send_us(stage)


def _down_us(work: EngineWork, stage: int) -> float:
    """From a gradient's arrival to having sent the next one."""
    return work.take_us(stage) + work.backward_us(stage) + work.send_back_us(stage)


def _slowest(work: EngineWork, step_us: float) -> str:
    busy_us = [work.busy_us(i) for i in range(len(work.stages))]
    most = max(range(len(busy_us)), key=busy_us.__getitem__)
    return f"stage{most}" if busy_us[most] > 0.99 * step_us else "waiting"


def _name(cuts: Sequence[CutWork]) -> str:
    kinds = sorted({cut.source for cut in cuts})
    return f"decoupled ({', '.join(kinds)})" if kinds else "one stage"
