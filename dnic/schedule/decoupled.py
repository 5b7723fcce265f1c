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
    return _round_trips(work, max(_short_loops(work), key=lambda loop: loop[0]))


def _short_loops(work: EngineWork) -> Iterator[tuple[float, str]]:
    """Stages, wires, and waiting for a slot where nothing comes back."""
    for stage in range(len(work.stages)):
        yield work.busy_us(stage), f"stage{stage}"
    for k, cut in enumerate(work.cuts):
        share = work.wire_share(k)
        yield cut.occupancy_us(share), f"cut{k}: transfer"
        if cut.returns:
            yield cut.back_occupancy_us(share), f"cut{k}: transfer back"
        else:
            away = work.message_us(k, 0) + work.message_us(k, 1) + cut.occupancy_us(share)
            yield (away + 2 * cut.link.latency_us) / (cut.window + 1), f"cut{k}: window"


def _round_trips(work: EngineWork, longest: tuple[float, str]) -> tuple[float, str]:
    """The longest of `longest` and all loops up to some stage and back.

    There are as many as pairs of stages where gradients are stale or exact. Dinkelbach's method
    (1967, doi 10.1287/mnsc.13.7.492) finds the largest quotient `us / steps` among them: take the
    loops of largest `us - guess * steps`, which is a sum along the chain, and guess anew by them.
    """
    cuts = work.cuts
    stages = range(len(work.stages))
    turns_us = [_turn_us(work, stage) for stage in stages]
    passes_us = [_up_us(work, stage) + _down_us(work, stage) for stage in stages]
    closes_us = [_close_us(work, stage) for stage in stages[:-1]]
    trips_us = [_trip_us(work, k) for k in range(len(cuts))]
    while True:
        guess_us, best = longest[0], longest
        up: tuple[float, int] | None = None  # Over the cut above and back, and its steps.
        for k in reversed(range(len(cuts))):
            if not cuts[k].returns:
                up = None
                continue
            us, span = turns_us[k + 1], 0
            if up is not None and not cuts[k + 1].has_head:
                further_us = passes_us[k + 1] + up[0]
                if further_us - guess_us * up[1] > us:
                    us, span = further_us, up[1]
            us += trips_us[k]
            span += 0 if cuts[k].source == "exact" else cuts[k].window
            up = us, span
            loop_us = (us + closes_us[k]) / (span + 1)
            if loop_us > best[0]:
                best = loop_us, f"cut{k}: {'window' if span else 'locked'}"
        # Rounding must not keep it going.
        if best[0] <= guess_us * (1 + 1e-14):
            return best
        longest = best


def _trip_us(work: EngineWork, k: int) -> float:
    """Both messages over a cut, without the processors' part."""
    cut, share = work.cuts[k], work.wire_share(k)
    return 2 * cut.link.latency_us + cut.occupancy_us(share) + cut.back_occupancy_us(share)


def _close_us(work: EngineWork, stage: int) -> float:
    """From a gradient's arrival through the update to having sent the next activation."""
    total_us = work.take_us(stage) + work.update_us(stage) + work.heads_us(stage)[1]
    total_us += work.start_us(stage) + _up_us(work, stage)
    if not work.cuts[stage].has_head:
        total_us += work.backward_us(stage) + work.send_back_us(stage)
    return total_us


def _turn_us(work: EngineWork, stage: int) -> float:
    """From an activation's arrival to having sent a gradient back, in one step."""
    total_us = _up_us(work, stage) + work.heads_us(stage)[0]
    total_us += work.backward_us(stage) + work.send_back_us(stage)
    if stage < len(work.cuts) and not work.cuts[stage].has_head:
        total_us += work.take_us(stage)
    return total_us


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
