"""One device and data parallel, by hand and against a reduction bucket by bucket."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnic.errors import PartitionError
from dnic.schedule import Machine, StageWork, data_parallel, one_device
from dnic.schedule.parallel import BUCKET_BYTES, reduction_us
from dnic.schedule.simulate import AllReduce, Compute, StepDone, simulate
from tests.schedule.parts import link, whole

WORK = StageWork(
    12,
    22,
    2,
    2,
    update_us=3,
    loader_us=8,
    parameter_bytes=1000,
    gradient_bytes=1000,
    optimizer_bytes=2000,
    activation_bytes=600,
)
MACHINE = Machine(step_us=5, reduce_bytes_per_s=100e6, reduce_latency_us=1)


def test_one_device_by_hand() -> None:
    done = one_device(WORK, 10, MACHINE)
    assert done.step_us == 12 + 22 + 3 + 8 + 5
    assert (done.devices, done.bubble, done.busy) == (1, 0, (1,))
    assert done.samples_per_s == pytest.approx(10 / 50e-6)
    assert done.peak_memory_bytes == (4600,)


def test_data_parallel_by_hand() -> None:
    """Half the batch: 7 + 12 + 4 of the loader; 2 latencies and 1000 bytes for the reduction."""
    done = data_parallel(WORK, 2, 10, MACHINE)
    assert done.step_us == 5 + 7 + 12 + 4 + 3 + (2 + 10)
    assert done.link_bytes == ((1000, 1000),)
    assert done.peak_memory_bytes == (4000 + 1000 + 300,) * 2
    assert done.bottleneck == "compute"
    assert data_parallel(WORK, 1, 10, MACHINE).step_us == one_device(WORK, 10, MACHINE).step_us


@given(devices=whole(4, 1), us=st.floats(1, 9), reduce_us=whole(9))
def test_data_parallel_without_overlap_is_what_the_simulation_takes(
    devices: int, us: float, reduce_us: int
) -> None:
    work = StageWork(us, 2 * us, update_us=1, gradient_bytes=1000)
    machine = Machine(reduce_bytes_per_s=1000e6, reduce_latency_us=reduce_us)
    own = [Compute(3 * us / devices), AllReduce(0, machine.allreduce_us(1000, devices))]
    run = simulate([[*own, Compute(1), StepDone()] * 5] * devices, groups=[devices])
    done = data_parallel(work, devices, machine=machine)
    assert run.step_us(2) == pytest.approx(done.step_us, rel=1e-9)
    assert run.busy_us_per_step(2)[0] / run.step_us(2) == pytest.approx(done.busy[0])


def test_bytes_and_latency_of_a_ring() -> None:
    machine = Machine(link=link(7, 2))
    assert machine.allreduce_us(100, 4) == 6 * 7 + 6 / 4 * 50
    assert machine.allreduce_us(100, 1) == 0
    assert Machine(link=link(7, 2), reduce_latency_us=0).allreduce_us(100, 4) == 75


@given(buckets=whole(9, 1), backward_us=whole(500), one_us=whole(90, 1))
def test_buckets_that_are_reduced_beside_backward(
    buckets: int, backward_us: int, one_us: int
) -> None:
    work = StageWork(0, backward_us * 2, gradient_bytes=buckets * BUCKET_BYTES)
    machine = Machine(reduce_bytes_per_s=BUCKET_BYTES / (one_us * 1e-6), overlap=1)
    done_us = 0.0
    for bucket in range(buckets):
        ready_us = backward_us * (bucket + 1) / buckets
        done_us = max(done_us, ready_us) + one_us
    assert reduction_us(work, 2, machine) == pytest.approx(done_us - backward_us, abs=1e-9)


def test_what_is_only_waited_for_is_not_busy() -> None:
    work = StageWork(10, 20, gradient_bytes=1000)
    machine = Machine(reduce_bytes_per_s=10e6, overlap=1)
    done = data_parallel(work, 2, machine=machine)
    assert done.step_us == 15 + 100
    assert done.bubble == pytest.approx(100 / 115)
    assert done.bottleneck == "all-reduce"


def test_many_parameters_and_unequal_steps_cost_time() -> None:
    work = StageWork(10, 20, update_us=1, gradient_bytes=1000, gradient_tensors=8)
    plain = Machine(reduce_bytes_per_s=10e6)
    machine = Machine(reduce_bytes_per_s=10e6, reduce_tensor_us=2, skew=0.1)
    more_us = data_parallel(work, 2, machine=machine).step_us
    assert more_us == data_parallel(work, 2, machine=plain).step_us + 8 * 2 + 0.1 * 15
    assert data_parallel(work, 1, machine=machine).step_us == one_device(work).step_us


def test_no_devices() -> None:
    with pytest.raises(PartitionError, match="0 devices"):
        data_parallel(WORK, 0)
