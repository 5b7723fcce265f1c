"""The simulation against cases computed by hand, and what must hold for any."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dnic.errors import PartitionError
from dnic.schedule.engine_work import EngineWork
from dnic.schedule.simulate import (
    Action,
    AllReduce,
    Channel,
    Compute,
    Receive,
    Run,
    Send,
    StepDone,
    Wire,
    simulate,
)
from dnic.schedule.work import Machine
from tests.schedule.parts import chains


def only_end(run: Run, device: int) -> float:
    (end,) = run.ends_us[device]
    return end


def test_one_message_by_hand() -> None:
    """3 computing, 1 sending, 10 bytes at 2 a microsecond, 4 on the way, 2 receiving."""
    sender = [Compute(3), Send(0, 1), Compute(1), StepDone()]
    receiver = [Receive(0, 2), Compute(7), StepDone()]
    run = simulate([sender, receiver], [Channel(0, 10)], [Wire(2e6, 4)])
    assert only_end(run, 0) == 5
    assert only_end(run, 1) == 3 + 1 + 5 + 4 + 2 + 7
    assert run.busy_us == ((5,), (9,))


def test_a_message_that_waits_for_its_receiver() -> None:
    run = simulate(
        [[Send(0, 1), StepDone()], [Compute(100), Receive(0, 2), StepDone()]],
        [Channel(0, 10)],
        [Wire(2e6, 4)],
    )
    assert only_end(run, 1) == 102


def test_one_message_at_a_time_and_latencies_side_by_side() -> None:
    sender = [Send(0), Send(0), Send(0), StepDone()]
    receiver = [Receive(0), StepDone(), Receive(0), StepDone(), Receive(0), StepDone()]
    run = simulate([sender, receiver], [Channel(0, 6)], [Wire(2e6, 4)])
    assert only_end(run, 0) == 0
    assert run.ends_us[1] == (7, 10, 13)


def test_a_wire_of_two_senders_serves_who_comes_first() -> None:
    programs: list[list[Action]] = [
        [Compute(2), Send(0), StepDone()],
        [Compute(1), Send(1), StepDone()],
        [Receive(0), StepDone()],
        [Receive(1), StepDone()],
    ]
    run = simulate(programs, [Channel(0, 10), Channel(0, 10)], [Wire(1e6)])
    assert (only_end(run, 3), only_end(run, 2)) == (11, 21)


def test_a_sender_waits_for_a_free_slot() -> None:
    """The third message waits for the first to be taken at 20 and for word of that."""
    sender = [Send(0), StepDone(), Send(0), StepDone(), Send(0), StepDone()]
    receiver = [Compute(20), Receive(0), Receive(0), Receive(0), StepDone()]
    run = simulate([sender, receiver], [Channel(0, slots=2)], [Wire(latency_us=3)])
    assert run.ends_us[0] == (0, 0, 23)
    assert only_end(run, 1) == 26


def test_without_slots_a_message_waits_for_word_of_its_receive() -> None:
    receiver = [Compute(20), Receive(0), StepDone()]
    run = simulate(
        [[Send(0), StepDone()], receiver], [Channel(0, 5, slots=0)], [Wire(1e6, latency_us=3)]
    )
    assert only_end(run, 0) == 0
    assert only_end(run, 1) == 20 + 3 + 5 + 3


def test_without_slots_a_receive_that_is_early() -> None:
    sender = [Compute(20), Send(0), StepDone()]
    run = simulate([sender, [Receive(0), StepDone()]], [Channel(0, 5, 0)], [Wire(1e6, 3)])
    assert only_end(run, 1) == 20 + 5 + 3


def test_an_all_reduce_waits_for_the_last() -> None:
    programs = [[Compute(us), AllReduce(0, 2), Compute(1), StepDone()] for us in (5, 9, 1)]
    run = simulate(programs, groups=[3])
    assert run.ends_us == ((12,), (12,), (12,))
    assert run.busy_us == ((8,), (12,), (4,))


def test_devices_that_wait_for_one_another() -> None:
    programs: list[list[Action]] = [[Receive(1), Send(0)], [Receive(0), Send(1)], [Compute(1)]]
    with pytest.raises(PartitionError, match="stops half-way") as caught:
        simulate(programs, [Channel(0), Channel(1)], [Wire(), Wire()])
    assert caught.value.where == "devices 0, 1 wait"


def test_the_mean_step_leaves_the_first_steps_out() -> None:
    run = Run(ends_us=((10, 12, 14), (11, 14, 17)), busy_us=((5, 6, 8), (1, 2, 3)))
    assert run.step_us(1) == 3
    assert run.step_us(2) == 3
    assert run.busy_us_per_step(2) == (1.5, 1)


@given(chain=chains(), step_us=st.integers(0, 2))
def test_all_work_is_done_and_no_device_works_twice_at_once(
    chain: tuple[list, list], step_us: int
) -> None:
    work = EngineWork(*chain, Machine(step_us=step_us))
    steps = 30
    run = work.simulate(steps)
    for stage in range(len(work.stages)):
        # Nothing is due in the first steps from cuts whose gradient comes late.
        missing = sum(
            work.cuts[cut].window * work.back_message_us(cut, 0)
            for cut in work.above[stage]
            if work.cuts[cut].source not in ("exact", "local")
        )
        busy_us = run.busy_us[stage][-1]
        assert busy_us == pytest.approx(steps * work.busy_us(stage) - missing, rel=1e-12)
        assert busy_us <= run.ends_us[stage][-1] * (1 + 1e-12)


@given(chain=chains(), steps=st.integers(1, 20))
def test_a_better_link_never_makes_it_slower(chain: tuple[list, list], steps: int) -> None:
    stages, cuts = chain
    machine = Machine()
    base = EngineWork(stages, cuts, machine).simulate(steps)
    for better in ({"bandwidth_bytes_per_s": 8e6}, {"latency_us": 0.0}):
        faster = [replace(cut, link=cut.link.model_copy(update=better)) for cut in cuts]
        run = EngineWork(stages, faster, machine).simulate(steps)
        for before, after in zip(base.ends_us, run.ends_us, strict=True):
            assert all(a <= b + 1e-9 for a, b in zip(after, before, strict=True))
