"""Pipelines: formulas against the simulation, and the bubbles that the papers give."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.errors import PartitionError
from dnic.schedule import (
    CutWork,
    Machine,
    StageWork,
    decoupled,
    eager_one_f_one_b,
    gpipe,
    interleaved,
    joined,
    naive,
    one_device,
    one_f_one_b,
    pipeline,
    zero_bubble,
)
from dnic.schedule.pipeline_formulas import gpipe_us, interleaved_bound_us, one_f_one_b_us
from tests.schedule.parts import ALONE, chains, cut, whole

STEPS, MEASURED = 20, 10


def equal(count: int, microbatches: int = 1, **rest: float) -> list[StageWork]:
    """Stages that take 10 forward and 20 back for each microbatch."""
    return [StageWork(10.0 * microbatches, 20.0 * microbatches, **rest)] * count


def chain_of(
    stage: StageWork, one: CutWork, devices: int, microbatches: int, kind: str, chunks: int = 1
) -> pipeline.Pipeline:
    orders = {
        "1f1b": pipeline.one_f_one_b_order,
        "interleaved": lambda *at: pipeline.interleaved_order(*at, chunks),
    }
    count = devices * chunks
    return pipeline._pipeline(
        [stage] * count, [one] * (count - 1), microbatches, None, devices, orders[kind]
    )


@given(chain=chains(ALONE), microbatches=whole(8, 1), step_us=whole(2), each_us=whole(2))
def test_gpipe_has_a_formula(
    chain: tuple[list, list], microbatches: int, step_us: int, each_us: int
) -> None:
    stages, cuts = chain
    machine = Machine(step_us=step_us, microbatch_us=each_us)
    made = pipeline._pipeline(
        stages, cuts, microbatches, machine, len(stages), pipeline.gpipe_order
    )
    assert gpipe_us(made) == pytest.approx(made.simulate(STEPS).step_us(MEASURED), rel=1e-9)


@given(chain=chains(ALONE), rounds=whole(4, 1), chunks=whole(2, 1))
def test_each_device_is_busy_as_long_as_the_simulation_has_it(
    chain: tuple[list, list], rounds: int, chunks: int
) -> None:
    stages, cuts = chain
    chunks = chunks if len(stages) % chunks == 0 else 1
    devices = len(stages) // chunks
    made = pipeline._pipeline(
        stages,
        cuts,
        rounds * devices,
        Machine(step_us=2, microbatch_us=1),
        devices,
        lambda *at: pipeline.interleaved_order(*at, chunks),
    )
    assert made.simulate(3).busy_us_per_step(1) == pytest.approx(made.busy_us(), rel=1e-9)


@pytest.mark.parametrize(
    ("latency_us", "plain_us", "eager_us"),
    [
        pytest.param(0.0, 270.0, 270.0, id="no delay: 1F1B's time"),
        pytest.param(
            5.0, 310.0, 280.0, id="a round trip in every second microbatch, or one in all"
        ),
    ],
)
def test_running_further_ahead_hides_the_messages(
    latency_us: float, plain_us: float, eager_us: float
) -> None:
    stages, cuts = equal(2, 8), [cut(0, latency_us=latency_us)]
    plain, eager = one_f_one_b(stages, cuts, 8), eager_one_f_one_b(stages, cuts, 8)
    assert (plain.step_us, eager.step_us) == pytest.approx((plain_us, eager_us))


def test_running_further_ahead_takes_memory() -> None:
    stages = equal(3, 8, activation_bytes=800)
    for way, held in ((one_f_one_b, (300, 200, 100)), (eager_one_f_one_b, (500, 300, 100))):
        assert way(stages, [cut(0)] * 2, 8).peak_memory_bytes == held


@given(stage=ALONE, devices=whole(6, 1), microbatches=whole(20, 1), latency_us=st.floats(0, 50))
def test_1f1b_of_equal_stages_has_a_formula(
    stage: StageWork, devices: int, microbatches: int, latency_us: float
) -> None:
    made = chain_of(stage, cut(0, latency_us), devices, microbatches, "1f1b")
    simulated_us = made.simulate(STEPS).step_us(MEASURED)
    assert one_f_one_b_us(made) == pytest.approx(simulated_us, rel=1e-9)


@given(
    stage=ALONE,
    devices=whole(5, 1),
    rounds=whole(4, 1),
    chunks=whole(3, 1),
    latency_us=st.sampled_from([0, 0, 3, 40]),
    nbytes=st.sampled_from([0, 8, 400]),
    message_us=st.sampled_from([0, 8, 24]),
)
@settings(max_examples=150)
def test_nothing_is_faster_than_its_bound(
    stage: StageWork,
    devices: int,
    rounds: int,
    chunks: int,
    latency_us: float,
    nbytes: int,
    message_us: float,
) -> None:
    one = cut(nbytes, latency_us, 4.0, message_us=message_us)
    microbatches = rounds * devices
    made = chain_of(stage, one, devices, microbatches, "interleaved", chunks)
    assert interleaved_bound_us(made) <= made.simulate(STEPS).step_us(MEASURED) * (1 + 1e-9)
    made = chain_of(stage, one, devices, microbatches, "1f1b")
    assert one_f_one_b_us(made) <= made.simulate(STEPS).step_us(MEASURED) * (1 + 1e-9)


@pytest.mark.parametrize("p", [1, 2, 4, 7])
@pytest.mark.parametrize("m", [1, 3, 8])
def test_the_bubble_without_links(p: int, m: int) -> None:
    """arXiv 2104.04473, sections 2.2.1 and 2.2.2: (p-1)/m of the ideal time, so (p-1)/(m+p-1)."""
    stages, cuts = equal(p, m), [cut()] * (p - 1)
    bubble = pytest.approx((p - 1) / (m + p - 1), abs=1e-12)
    assert gpipe(stages, cuts, m).bubble == bubble
    assert one_f_one_b(stages, cuts, m).bubble == bubble
    assert gpipe(stages, cuts, m, posted_ahead=False).bubble == bubble


@pytest.mark.parametrize(("p", "rounds", "v"), [(2, 1, 2), (3, 2, 2), (4, 2, 3), (4, 4, 4)])
def test_the_interleaved_bubble_without_links(p: int, rounds: int, v: int) -> None:
    m = p * rounds
    done = interleaved(equal(p * v, m), [cut()] * (p * v - 1), m, v)
    assert done.bubble == pytest.approx((p - 1) / (v * m + p - 1), abs=1e-12)
    assert done.devices == p


@given(chain=chains(ALONE), rounds=whole(3, 1), chunks=whole(2, 1), shares=whole(4))
def test_a_backward_pass_in_two_parts_takes_no_less(
    chain: tuple[list, list], rounds: int, chunks: int, shares: int
) -> None:
    stages, cuts = chain
    stages = [replace(s, weight_us=s.backward_us * shares / 4) for s in stages]
    chunks = chunks if len(stages) % chunks == 0 else 1
    devices = len(stages) // chunks
    machine = Machine(step_us=2, microbatch_us=1, division=0.5)
    made = pipeline._pipeline(
        stages,
        cuts,
        rounds * devices,
        machine,
        devices,
        lambda *at: pipeline.zero_bubble_order(*at, chunks),
    )
    run = made.simulate(3)
    assert run.busy_us_per_step(1) == pytest.approx(made.busy_us(), rel=1e-9)
    again = range(devices - 1, len(stages), devices)
    divided_us = [stages[k].backward_at(1 / made.microbatches) * 0.5 + 1 for k in again if k]
    started_again_us = rounds * devices * sum(divided_us)
    whole_us = pipeline._pipeline(
        stages,
        cuts,
        rounds * devices,
        machine,
        devices,
        lambda *at: pipeline.interleaved_order(*at, chunks),
    ).busy_us()
    assert made.busy_us()[-1] == pytest.approx(whole_us[-1] + started_again_us)


@pytest.mark.parametrize(("p", "m"), [(2, 4), (4, 8), (4, 16)])
def test_the_zero_bubble_by_hand(p: int, m: int) -> None:
    """Qi et al., table 1: ZB-H1 waits (p - 1)(f + b - w) in place of (p - 1)(f + b + w)."""
    third = [StageWork(10.0 * m, 20.0 * m, weight_us=10.0 * m)] * p
    cuts = [cut()] * (p - 1)
    done = zero_bubble(third, cuts, m)
    assert one_f_one_b(third, cuts, m).step_us == 30.0 * (m + p - 1)
    assert done.step_us == pytest.approx(30.0 * m + 10.0 * (p - 1))


def test_a_zero_bubble_that_is_too_long() -> None:
    with pytest.raises(PartitionError, match="too many to simulate"):
        zero_bubble(equal(100), [cut()] * 99, 400)
    with pytest.raises(PartitionError, match="3 stages in 2 chunks"):
        zero_bubble(equal(3), [cut()] * 2, 4, 2)


def test_gpipe_by_hand() -> None:
    """Two stages, two microbatches of 10 and 20 us, 5 us away, 3 us of transfer.

    Forward: 10 + 8 until the second stage begins, then two of 10: 38. Back: two of 20: 78, the
    second gradient 8 later, 20 on the first stage: 106; its update 4.
    """
    stages = equal(2, 2, update_us=4.0)
    done = gpipe(stages, [cut(6, 5.0)], 2, batch=11)
    assert done.step_us == 110
    assert done.busy == (64 / 110, 64 / 110)
    assert done.samples_per_s == 11 / 110e-6
    assert done.link_bytes == ((6, 6),)
    assert done.how == "formula"


def test_a_receive_that_is_not_posted_ahead_waits_a_latency_more() -> None:
    """Forward 10, posted long before, 5 away, 10, 20; 5 away while the receive is posted, 20."""
    stages = equal(2)
    ahead = one_f_one_b(stages, [cut(0, 5.0)], 1)
    late = one_f_one_b(stages, [cut(0, 5.0)], 1, posted_ahead=False)
    assert ahead.step_us == late.step_us == 70
    # Two microbatches: the second is sent at 20, when the first (15 to 45) is not yet done.
    stages = equal(2, 2)
    assert one_f_one_b(stages, [cut(0, 5.0)], 2).step_us == 100
    late = one_f_one_b(stages, [cut(0, 5.0)], 2, posted_ahead=False)
    assert late.step_us == 110


def test_memory_of_microbatches_in_flight() -> None:
    stages = equal(4, 8, parameter_bytes=100, gradient_bytes=100, activation_bytes=800)
    cuts = [cut(80, bytes_per_us=1e12)] * 3
    assert gpipe(stages, cuts, 8).peak_memory_bytes == (1000, 1080, 1080, 1080)
    assert one_f_one_b(stages, cuts, 8).peak_memory_bytes == (600, 530, 420, 310)
    done = interleaved(stages, cuts, 8, 2)
    assert done.peak_memory_bytes == (400 + 5 * 110, 400 + 3 * 110)


def test_naive_is_the_engine_with_exact_gradients() -> None:
    stages, cuts = equal(3, update_us=7.0), [cut(6, 5.0, message_us=1.0)] * 2
    done = naive(stages, cuts, 16, Machine(step_us=2.0, microbatch_us=300.0))
    assert done.step_us == decoupled(stages, cuts, 16, Machine(step_us=2.0)).step_us == 151
    assert done.name == "naive model parallel"


def test_one_stage_is_one_device() -> None:
    stages = [StageWork(10, 20, update_us=3, loader_us=4)]
    for done in (naive(stages, []), one_f_one_b(stages, [], 1), decoupled(stages, [])):
        assert done.step_us == one_device(joined(stages)).step_us == 37
        assert done.bubble == 0


def test_a_long_chain_of_equal_stages_is_not_simulated() -> None:
    stages, cuts = equal(300, 80), [cut(0, 1.0)] * 299
    done = one_f_one_b(stages, cuts, 80)
    assert done.how == "formula"
    assert done.step_us == pytest.approx((80 + 299) * 30 + 2 * 299 + 78 * 2)
    assert one_f_one_b(stages, [cut(8, 1.0)] * 299, 80).how == "bound"
    assert interleaved(stages, cuts, 150, 2).how == "bound"
    with pytest.raises(PartitionError, match="unequal stages"):
        one_f_one_b([StageWork(1, 1), *stages[1:]], cuts, 80)


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: gpipe(equal(2), [], 2), "do not join"),
        (lambda: gpipe(equal(2), [cut(source_stage=0, to=1), cut()], 2), "leads from stage 1"),
        (lambda: gpipe(equal(2, replicas=2), [cut()], 2), "replicated"),
        (lambda: gpipe([], [], 2), "without stages"),
        (lambda: gpipe(equal(2), [cut()], 0), "0 microbatches"),
        (lambda: interleaved(equal(3), [cut()] * 2, 2, 2), "3 stages in 2 chunks"),
        (lambda: joined([]), "without stages"),
    ],
)
def test_what_no_pipeline_can_do(make: object, problem: str) -> None:
    with pytest.raises(PartitionError, match=problem):
        make()
