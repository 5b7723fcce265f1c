"""The best that exact training and decoupled training can do on at most `n` equal devices.

The model is `n` equal blocks, `n` a power of two. Both sides may use fewer devices, give each stage
several blocks, and run replicas of the whole; all in powers of two. Exact training may divide a
replica's batch into microbatches: GPipe, 1F1B, interleaved 1F1B; on a single stage that is gradient
accumulation, with replicas data parallel.

All are the formulas of `dnic.schedule`. Where 1F1B's is a lower bound it stays so: exact training
is given the benefit of the doubt.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from dnic.schedule import (
    CutWork,
    Machine,
    Outcome,
    StageWork,
    decoupled,
)
from dnic.schedule.orders import Order, interleaved_order
from dnic.schedule.parallel import reduction_us
from dnic.schedule.pipeline_formulas import gpipe_us, interleaved_bound_us, one_f_one_b_us
from dnic.schedule.pipeline_work import Pipeline

# Interleaved pipelines of more passes than this are taken at their lower bound.
MOST_SIMULATED = 600
CHUNKS = 2
KINDS = (
    "none fits",
    "data parallel",
    "GPipe",
    "one device",
    "1F1B",
    "interleaved 1F1B",
    "model parallel",
    "pipeline x data parallel",
)
_ENOUGH = 1.01


@dataclass(frozen=True)
class Workload:
    """What is trained.

    Attributes:
        block: of the model, at the full batch.
        cut: between any two blocks; its source and window are those of decoupled training.
        machine: one of the equal devices.
        samples: of a batch; none is divided.
        windows: that decoupled training may choose from, ascending.
        memory_bytes: of a device; None: no limit.
        recomputed: the block where only its input is kept for backward, which goes forward again;
            exact training may choose it. None: it may not.
    """

    block: StageWork
    cut: CutWork
    machine: Machine
    samples: int
    windows: tuple[int, ...]
    memory_bytes: int | None = None
    recomputed: StageWork | None = None

    def fits(self, nbytes: float) -> bool:
        """Whether a device holds so much."""
        return self.memory_bytes is None or nbytes <= self.memory_bytes


@dataclass(frozen=True)
class Way:
    """One way to train and its step time; `kind` is what a legend says."""

    kind: str
    name: str
    step_us: float


def best_exact(work: Workload, devices: int) -> Way | None:
    """The fastest exact way; None where none fits in memory."""
    best = _best_exact(work, devices)
    if work.recomputed is None:
        return best
    again = _best_exact(replace(work, block=work.recomputed), devices)
    if again is None or (best is not None and best.step_us <= again.step_us):
        return best
    return replace(again, name=f"{again.name} recomputing")


def _best_exact(work: Workload, devices: int) -> Way | None:
    best: Way | None = None
    pipelines = list(_pipelines(work, devices))
    for pipeline, replicas in pipelines:
        for way in _scheduled(work, pipeline, replicas):
            best = _faster(best, way)
    # Last, because most of them need not be simulated then.
    for pipeline, replicas in pipelines:
        best = _faster(best, _interleaved(work, pipeline, replicas, best))
    return best


def best_decoupled(work: Workload, devices: int) -> tuple[Way, int] | None:
    """The fastest decoupled way and its window; None where none fits in memory.

    The window is the smallest that is within 1% of the largest allowed one.
    """
    found: tuple[Way, int] | None = None
    for stages, replicas in _divisions(work, devices):
        if stages == 1:
            continue
        blocks = devices // stages
        runs = [_run_decoupled(work, stages, replicas, blocks, window) for window in work.windows]
        least_us = min(run.step_us for run in runs)
        place = next(i for i, run in enumerate(runs) if run.step_us <= _ENOUGH * least_us)
        run, window = runs[place], work.windows[place]
        if not work.fits(max(run.peak_memory_bytes)):
            continue
        if found is None or run.step_us < found[0].step_us:
            name = f"decoupled s{stages} r{replicas} w{window}"
            found = Way("decoupled", name, run.step_us), window
    return found


def _run_decoupled(work: Workload, stages: int, replicas: int, blocks: int, window: int) -> Outcome:
    # From three stages on no further one of the same kind changes the step.
    count = min(stages, 3)
    stage = replace(_times(work.block, blocks), replicas=replicas)
    cut = replace(work.cut, window=window)
    return decoupled([stage] * count, [cut] * (count - 1), work.samples, work.machine)


def _divisions(work: Workload, devices: int) -> Iterator[tuple[int, int]]:
    """Numbers of stages and of replicas: powers of two that need at most so many devices."""
    stages = 1
    while stages <= devices:
        replicas = 1
        while stages * replicas <= devices and replicas <= work.samples:
            yield stages, replicas
            replicas *= 2
        stages *= 2


def _pipelines(work: Workload, devices: int) -> Iterator[tuple[Pipeline, int]]:
    """All pipelines, as one replica runs them, with the number of their replicas."""
    for stages, replicas in _divisions(work, devices):
        stage = _times(work.block, devices // stages)
        # A replica sees its part of the batch; averaging the gradients comes before the update.
        part = 1 / replicas
        waits_us = reduction_us(stage, replicas, work.machine)
        # DDP copies gradients into its buckets.
        buckets = stage.gradient_bytes if replicas > 1 else 0
        stage = replace(
            stage,
            forward_us=stage.forward_at(part),
            backward_us=stage.backward_at(part),
            update_us=stage.update_us + waits_us,
            gradient_bytes=stage.gradient_bytes + buckets,
            activation_bytes=round(stage.activation_bytes * part),
        )
        cut = replace(
            work.cut,
            nbytes=round(work.cut.nbytes * part),
            back_nbytes=round(work.cut.back_nbytes * part),
            message_us=work.cut.message_at(part),
        )
        microbatches = 1
        while microbatches <= work.samples // replicas:
            # Without microbatches nothing of a pipeline's schedule runs.
            each_us = work.machine.microbatch_us if microbatches > 1 else 0.0
            machine = replace(work.machine, microbatch_us=each_us)
            orders: list[Order] = [()] * stages  # The formulas need only their number.
            cuts = [cut] * (stages - 1)
            yield Pipeline([stage] * stages, cuts, orders, microbatches, machine), replicas
            microbatches *= 2


def _scheduled(work: Workload, pipeline: Pipeline, replicas: int) -> Iterator[Way]:
    stage, m = pipeline.stages[0], pipeline.microbatches
    if work.fits(stage.state_bytes + stage.activation_bytes):
        kind = "GPipe" if m > 1 else "model parallel"
        yield _way(kind, pipeline, replicas, equal_gpipe_us(pipeline))
    in_flight = min(m, pipeline.devices) / m
    if m > 1 and work.fits(stage.state_bytes + stage.activation_bytes * in_flight):
        yield _way("1F1B", pipeline, replicas, one_f_one_b_us(pipeline))


def _way(kind: str, pipeline: Pipeline, replicas: int, step_us: float) -> Way:
    stages = pipeline.devices
    if stages == 1:
        kind = "data parallel" if replicas > 1 else "one device"
    name = f"{kind} s{stages} r{replicas} m{pipeline.microbatches}"
    if stages > 1 and replicas > 1:
        kind = "pipeline x data parallel"
    return Way(kind, name, step_us)


def equal_gpipe_us(pipeline: Pipeline) -> float:
    """GPipe's step time of equal stages: from the third on each adds as much as the one before."""
    count = len(pipeline.stages)
    if count <= 4:
        return gpipe_us(pipeline)
    three, four = (
        gpipe_us(
            replace(
                pipeline,
                stages=pipeline.stages[:few],
                cuts=pipeline.cuts[: few - 1],
                orders=pipeline.orders[:few],
            )
        )
        for few in (3, 4)
    )
    return three + (count - 3) * (four - three)


def _interleaved(work: Workload, pipeline: Pipeline, replicas: int, best: Way | None) -> Way | None:
    """Interleaved 1F1B; simulated only where its lower bound could be the best."""
    devices, m = pipeline.devices, pipeline.microbatches
    stage = pipeline.stages[0]
    if devices == 1:
        return None
    # The last device's work, after the first microbatch has come up and before it has gone down.
    passes_us = pipeline.forward_us(0) + pipeline.backward_us(0)
    if best is not None and (m + (devices - 1) / CHUNKS) * passes_us >= best.step_us:
        return None
    # Each device holds about as much as with 1F1B, and a little more.
    if m % devices or not work.fits(stage.state_bytes + stage.activation_bytes * devices / m):
        return None
    parts = ("forward_us", "backward_us", "forward_fixed_us", "backward_fixed_us", "update_us")
    half = replace(stage, **{name: getattr(stage, name) / CHUNKS for name in parts})
    first = _first_order(devices, m)
    chunked = Pipeline(
        [half] * (devices * CHUNKS),
        [pipeline.cuts[0]] * (devices * CHUNKS - 1),
        [first] * devices,
        m,
        pipeline.machine,
    )
    step_us = interleaved_bound_us(chunked)
    if best is not None and step_us >= best.step_us:
        return None
    if devices * CHUNKS * m <= MOST_SIMULATED:
        orders = [interleaved_order(i, devices, m, CHUNKS) for i in range(devices)]
        step_us = replace(chunked, orders=orders).simulate(3).step_us(1)
    return _way("interleaved 1F1B", pipeline, replicas, step_us)


@lru_cache(maxsize=32)
def _first_order(devices: int, microbatches: int) -> Order:
    return interleaved_order(0, devices, microbatches, CHUNKS)


def _times(block: StageWork, count: int) -> StageWork:
    """So many blocks one after the other, on one device."""
    many = {f.name: getattr(block, f.name) * count for f in fields(block)}
    return StageWork(**{**many, "replicas": 1})


def _faster(best: Way | None, way: Way | None) -> Way | None:
    if best is None or way is None:
        return best or way
    return way if way.step_us < best.step_us else best
