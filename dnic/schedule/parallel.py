"""One device, and data parallel: every device trains the whole model on its share of the batch."""

from __future__ import annotations

from math import ceil

from dnic.errors import PartitionError
from dnic.schedule.work import Machine, Outcome, StageWork, outcome

BUCKET_BYTES = 25 * 2**20


def one_device(work: StageWork, batch: int = 1, machine: Machine | None = None) -> Outcome:
    """Backprop on one device.

    Args:
        work: the whole model; `joined(stages)` of a cut one.
        batch: samples in a batch.
        machine: its `step_us` counts.
    """
    machine = machine or Machine()
    step_us = _own_us(work, 1.0, machine)
    return outcome(
        "one device",
        step_us,
        [step_us],
        batch=batch,
        peak_memory_bytes=[work.state_bytes + work.activation_bytes],
        link_bytes=[],
        staleness=[0],
        bottleneck="compute",
        how="formula",
    )


def data_parallel(
    work: StageWork, devices: int, batch: int = 1, machine: Machine | None = None
) -> Outcome:
    """Data parallel as torch's DDP does it: gradients are averaged in buckets of 25 MB.

    Memory counts the gradients twice: DDP copies them into its buckets.

    Args:
        work: the whole model at the full batch.
        devices: among which the batch is divided.
        batch: samples in a batch.
        machine: how an all-reduce goes.

    Raises:
        PartitionError: there are no devices.
    """
    machine = machine or Machine()
    if devices < 1:
        raise PartitionError(f"data parallel on {devices} devices", expected="1 or more")
    own_us = _own_us(work, 1 / devices, machine)
    passes_us = work.forward_at(1 / devices) + work.backward_at(1 / devices)
    waits_us = reduction_us(work, devices, machine)
    waits_us += machine.skew * passes_us if devices > 1 else 0.0
    # Where nothing overlaps, the reduction is the core's own work; a GPU only waits for it.
    busy_us = own_us + waits_us * (1 - machine.overlap)
    moved = round(2 * (devices - 1) / devices * work.gradient_bytes)
    buckets = work.gradient_bytes if devices > 1 else 0
    activations = ceil(work.activation_bytes / devices)
    return outcome(
        "data parallel",
        own_us + waits_us,
        [busy_us] * devices,
        batch=batch,
        peak_memory_bytes=[work.state_bytes + buckets + activations] * devices,
        link_bytes=[(moved, moved)],
        staleness=[0],
        bottleneck="all-reduce" if waits_us > own_us else "compute",
        how="formula",
    )


def reduction_us(work: StageWork, devices: int, machine: Machine) -> float:
    """Microseconds that averaging the gradients adds to a step, after what backward hides.

    The gradients of `k` equal buckets become ready evenly during backward and are averaged one
    after the other. With full overlap the wait ends with the last of them: either the first bucket
    decides (all `k` after it) or the last one (ready when backward is over). What each parameter
    costs is the processor's own work.
    """
    buckets = ceil(work.gradient_bytes / BUCKET_BYTES)
    if devices == 1 or buckets == 0:
        return 0.0
    one_us = machine.allreduce_us(work.gradient_bytes / buckets, devices)
    total_us = buckets * one_us
    hidden_us = work.backward_at(1 / devices) * (buckets - 1) / buckets
    rest_us = max(one_us, total_us - hidden_us)
    tensors_us = machine.reduce_tensor_us * work.gradient_tensors
    return tensors_us + (1 - machine.overlap) * total_us + machine.overlap * rest_us


def _own_us(work: StageWork, share: float, machine: Machine) -> float:
    passes_us = work.forward_at(share) + work.backward_at(share)
    return machine.step_us + work.loader_us * share + passes_us + work.update_us
