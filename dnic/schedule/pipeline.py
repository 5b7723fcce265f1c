"""Pipelines with exact gradients: naive model parallel, GPipe, 1F1B, interleaved, zero-bubble.

GPipe has a formula for any stages and links. The others are simulated; chains too long for that
must be of equal stages and cuts. Then 1F1B and interleaved 1F1B have a lower bound, which is 1F1B's
exact time where messages only have latency; zero-bubble has none. Recomputing activations is not
modelled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from dnic.errors import PartitionError
from dnic.schedule.orders import (
    Order,
    eager_order,
    gpipe_order,
    interleaved_order,
    one_f_one_b_order,
    zero_bubble_order,
)
from dnic.schedule.pipeline_formulas import gpipe_us, interleaved_bound_us, one_f_one_b_us
from dnic.schedule.pipeline_work import Pipeline
from dnic.schedule.work import CutWork, How, Machine, Outcome, StageWork, check_chain, outcome

# Forwards of all stages in a step: beyond it a simulation takes more than some seconds.
MOST_PASSES = 20_000
_STEPS = 4


def naive(
    stages: Sequence[StageWork],
    cuts: Sequence[CutWork],
    batch: int = 1,
    machine: Machine | None = None,
) -> Outcome:
    """Model parallel: one device after the other, the whole batch at once.

    Raises:
        PartitionError: the cuts are not a chain's.
    """
    # Without microbatches nothing of a pipeline's schedule runs.
    machine = replace(machine or Machine(), microbatch_us=0.0)
    return replace(gpipe(stages, cuts, 1, batch, machine), name="naive model parallel")


def gpipe(
    stages: Sequence[StageWork],
    cuts: Sequence[CutWork],
    microbatches: int,
    batch: int = 1,
    machine: Machine | None = None,
    *,
    posted_ahead: bool = True,
) -> Outcome:
    """GPipe: all microbatches forward, then all back. Holds the activations of all of them.

    Args:
        stages, cuts: a chain; gradients are exact whatever the cuts' sources.
        microbatches: into which the batch is divided.
        batch: samples in a batch.
        machine: `step_us` and `microbatch_us` count.
        posted_ahead: whether receives are; False is torch's pipeline over gloo.

    Raises:
        PartitionError: the cuts are not a chain's, or there are no microbatches.
    """
    pipeline = _pipeline(stages, cuts, microbatches, machine, len(stages), gpipe_order)
    name = f"GPipe m{microbatches}"
    if posted_ahead:
        return _outcome(name, pipeline, gpipe_us(pipeline), batch, "formula")
    return _simulated(name, pipeline, batch, posted_ahead=False)


def one_f_one_b(
    stages: Sequence[StageWork],
    cuts: Sequence[CutWork],
    microbatches: int,
    batch: int = 1,
    machine: Machine | None = None,
    *,
    posted_ahead: bool = True,
) -> Outcome:
    """1F1B: holds the activations of at most as many microbatches as stages follow.

    Takes and raises what `gpipe` does.
    """
    pipeline = _pipeline(stages, cuts, microbatches, machine, len(stages), one_f_one_b_order)
    name = f"1F1B m{microbatches}"
    if _short(pipeline) or not posted_ahead:
        return _simulated(name, pipeline, batch, posted_ahead=posted_ahead)
    cut = cuts[0] if cuts else None
    only_latency = cut is None or cut.nbytes == cut.back_nbytes == cut.message_us == 0
    how: How = "formula" if only_latency else "bound"
    return _outcome(name, pipeline, one_f_one_b_us(pipeline), batch, how)


def eager_one_f_one_b(
    stages: Sequence[StageWork],
    cuts: Sequence[CutWork],
    microbatches: int,
    batch: int = 1,
    machine: Machine | None = None,
) -> Outcome:
    """Our own engine with microbatches; its receives are posted ahead.

    Takes and raises what `gpipe` does. Chains too long to simulate get the time of plain 1F1B.
    """
    pipeline = _pipeline(stages, cuts, microbatches, machine, len(stages), eager_order)
    name = f"eager 1F1B m{microbatches}"
    if _short(pipeline):
        return _simulated(name, pipeline, batch, posted_ahead=True)
    return _outcome(name, pipeline, one_f_one_b_us(pipeline), batch, "bound")


def interleaved(
    stages: Sequence[StageWork],
    cuts: Sequence[CutWork],
    microbatches: int,
    chunks: int,
    batch: int = 1,
    machine: Machine | None = None,
    *,
    posted_ahead: bool = True,
) -> Outcome:
    """Interleaved 1F1B: `chunks` stages on each device, stage `k` on device `k mod devices`.

    Takes and raises what `gpipe` does; besides, the number of stages must be a multiple of
    `chunks`, and microbatches must fill whole rounds.
    """
    if chunks < 1 or len(stages) % chunks:
        raise PartitionError(
            f"{len(stages)} stages in {chunks} chunks a device",
            expected="a number of stages that is a multiple of the chunks",
        )

    def order(device: int, devices: int, microbatches: int) -> Order:
        return interleaved_order(device, devices, microbatches, chunks)

    pipeline = _pipeline(stages, cuts, microbatches, machine, len(stages) // chunks, order)
    name = f"interleaved 1F1B m{microbatches} v{chunks}"
    if _short(pipeline) or not posted_ahead:
        return _simulated(name, pipeline, batch, posted_ahead=posted_ahead)
    return _outcome(name, pipeline, interleaved_bound_us(pipeline), batch, "bound")


def zero_bubble(
    stages: Sequence[StageWork],
    cuts: Sequence[CutWork],
    microbatches: int,
    chunks: int = 1,
    batch: int = 1,
    machine: Machine | None = None,
    *,
    posted_ahead: bool = True,
) -> Outcome:
    """Zero-bubble: interleaved, or over one stage a device; `weight_us` fills the waits.

    Takes and raises what `interleaved` does; besides, the chain must be short enough to simulate.
    """
    if chunks < 1 or len(stages) % chunks:
        raise PartitionError(
            f"{len(stages)} stages in {chunks} chunks a device",
            expected="a number of stages that is a multiple of the chunks",
        )

    def order(device: int, devices: int, microbatches: int) -> Order:
        return zero_bubble_order(device, devices, microbatches, chunks)

    if len(stages) * microbatches > MOST_PASSES:
        raise PartitionError(
            f"{len(stages)} stages and {microbatches} microbatches are too many to simulate",
            hint="fewer stages or microbatches",
        )
    pipeline = _pipeline(stages, cuts, microbatches, machine, len(stages) // chunks, order)
    name = f"zero-bubble m{microbatches}" + (f" v{chunks}" if chunks > 1 else "")
    return _simulated(name, pipeline, batch, posted_ahead=posted_ahead)


def _pipeline(
    stages: Sequence[StageWork],
    cuts: Sequence[CutWork],
    microbatches: int,
    machine: Machine | None,
    devices: int,
    order: Callable[[int, int, int], Order],
) -> Pipeline:
    check_chain(stages, cuts)
    if microbatches < 1:
        raise PartitionError(f"{microbatches} microbatches", expected="1 or more")
    orders = [order(device, devices, microbatches) for device in range(devices)]
    return Pipeline(stages, cuts, orders, microbatches, machine or Machine())


def _short(pipeline: Pipeline) -> bool:
    return len(pipeline.stages) * pipeline.microbatches <= MOST_PASSES


def _simulated(name: str, pipeline: Pipeline, batch: int, *, posted_ahead: bool) -> Outcome:
    run = pipeline.simulate(_STEPS, posted_ahead=posted_ahead)
    return _outcome(name, pipeline, run.step_us(1), batch, "simulated")


def _outcome(name: str, pipeline: Pipeline, step_us: float, batch: int, how: How) -> Outcome:
    busy_us = pipeline.busy_us()
    busiest = max(range(len(busy_us)), key=busy_us.__getitem__)
    idle = step_us > 2 * busy_us[busiest]
    return outcome(
        name,
        step_us,
        busy_us,
        batch=batch,
        peak_memory_bytes=pipeline.peak_memory_bytes(),
        link_bytes=pipeline.link_bytes(),
        staleness=[0] * len(pipeline.stages),
        bottleneck="filling and waiting" if idle else f"stage{busiest}",
        how=how,
    )
