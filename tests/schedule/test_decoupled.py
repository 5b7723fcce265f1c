"""Decoupled stages: the formula against the simulation, the window rule, memory and lateness."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given, settings

from dnic.errors import PartitionError
from dnic.schedule import CutWork, Machine, StageWork, decoupled
from dnic.schedule.decoupled import longest_loop
from dnic.schedule.engine_work import EngineWork
from tests.schedule.parts import chains, cut, whole

# The steady state repeats itself every `window + 1` steps or a multiple: windows are 1 to 3 here.
STEPS, MEASURED = 900, 360


def decoupled_cut(nbytes: int = 0, latency_us: float = 0.0, **rest: object) -> CutWork:
    return cut(nbytes, latency_us, **{"source": "synthetic", "window": 2, **rest})


@settings(max_examples=150)
@given(chain=chains(), step_us=whole(2))
@example(([StageWork(3, 5)] * 4, [cut(4, 40.0, source="stale", window=1)] * 3), 1)
@example(([StageWork(3, 5)] * 4, [cut(4, 40.0), decoupled_cut(2, 90.0), cut(4, 9.0)]), 1)
@example(([StageWork(3, 5)] * 3, [cut(4, 90.0, source="local")] * 2), 0)
def test_the_longest_loop_is_what_the_simulation_takes(
    chain: tuple[list, list], step_us: int
) -> None:
    work = EngineWork(*chain, Machine(step_us=step_us))
    formula_us, _ = longest_loop(work)
    assert work.simulate(STEPS).step_us(MEASURED) == pytest.approx(formula_us, rel=1e-9)


def test_a_window_that_covers_the_link_leaves_the_slowest_stage() -> None:
    stages = [StageWork(10, 20), StageWork(11, 22, update_us=4), StageWork(9, 18)]
    done = decoupled(stages, [decoupled_cut(20, 5.0)] * 2, 37)
    assert (done.step_us, done.bottleneck, done.how) == (37, "stage1", "formula")
    assert done.busy == (30 / 37, 1, 27 / 37)
    assert done.bubble == pytest.approx(1 - (30 + 37 + 27) / 37 / 3)
    assert done.samples_per_s == pytest.approx(1e6)


@pytest.mark.parametrize("window", [1, 2, 4])
def test_the_window_rule_by_hand(window: int) -> None:
    """Round trip 2000, two transfers of 30, down 10 + 20 + 2 messages, up 4 + 1 + 10 + 2 messages.

    Down: receives, goes forward and back, sends. Up: takes, updates, learns, goes forward, sends.
    """
    stages = [StageWork(10, 20, update_us=4), StageWork(10, 20, update_us=50)]
    one = decoupled_cut(30, 1000.0, window=window, message_us=1.0, learn_us=1.0, predict_us=6.0)
    done = decoupled(stages, [one])
    assert done.step_us == pytest.approx((2000 + 60 + 32 + 17) / (window + 1))
    assert done.bottleneck == "cut0: window"


def test_a_wire_that_is_too_thin() -> None:
    done = decoupled([StageWork(10, 20)] * 2, [replace(decoupled_cut(90, 5.0), back_nbytes=1)])
    assert (done.step_us, done.bottleneck) == (90, "cut0: transfer")


def test_a_locked_group_goes_one_after_the_other() -> None:
    """Batch by batch through both and back: 30 + 30, twice 5 + 4; the later update is beside it."""
    stages = [StageWork(10, 20, update_us=3), StageWork(10, 20, update_us=3), StageWork(40, 20)]
    done = decoupled(stages, [cut(4, 5.0), decoupled_cut(4, 5.0)])
    assert (done.step_us, done.bottleneck) == (60 + 18 + 3, "cut0: locked")
    assert done.staleness == (0, 0, 0)
    assert done.name == "decoupled (exact, synthetic)"


def test_lateness() -> None:
    """Of each stage the windows of stale gradients on the way; a head is late, its stage is not."""
    stages = [StageWork(1, 1)] * 4
    stale, synthetic = cut(source="stale", window=3), decoupled_cut(window=2)
    assert decoupled(stages, [stale, stale, stale]).staleness == (9, 6, 3, 0)
    done = decoupled(stages, [synthetic, stale, cut()])
    assert done.staleness == (0, 3, 0, 0)
    assert done.head_lateness == (5, 0, 0)
    assert decoupled(stages, [cut(), cut(), stale]).staleness == (3, 3, 3, 0)
    assert decoupled(stages, [cut(source="local")] * 3).head_lateness == (0, 0, 0)


def test_memory() -> None:
    stage = StageWork(
        1, 1, parameter_bytes=100, gradient_bytes=100, optimizer_bytes=200, activation_bytes=50
    )
    one = decoupled_cut(10, window=2, head_bytes=7)
    done = decoupled([stage, stage], [one])
    assert done.peak_memory_bytes == (400 + 50 + 3 * 20 + 4 * 7, 400 + 50 + 3 * 20)
    stale = replace(one, source="stale", head_bytes=0)
    late = 3 * 50 + 2 * 100  # the weights with which the two late batches went forward
    assert decoupled([stage, stage], [stale]).peak_memory_bytes[0] == 400 + late + 3 * 20
    exact = replace(stale, source="exact")
    assert decoupled([stage, stage], [exact]).peak_memory_bytes[0] == 400 + 50 + 20
    local = replace(one, source="local")
    done = decoupled([stage, stage], [local])
    assert done.peak_memory_bytes[0] == 400 + 50 + 3 * 10 + 4 * 7
    assert done.link_bytes == ((10, 0),)


def test_replicas_share_the_batch_and_average_their_gradients() -> None:
    """Half a batch each, 2 us fixed; a ring of two: 1000 bytes at 100 a microsecond, twice 1 us."""
    replicated = StageWork(
        12, 22, 2, 2, update_us=3, gradient_bytes=1000, activation_bytes=8, replicas=2
    )
    machine = Machine(reduce_bytes_per_s=100e6, reduce_latency_us=1.0)
    done = decoupled([replicated, StageWork(5, 5)], [decoupled_cut(40)], machine=machine)
    assert done.step_us == 40  # The second stage's one wire.
    done = decoupled([replicated, StageWork(5, 5)], [decoupled_cut(20)], machine=machine)
    assert done.step_us == (2 + 5) + (2 + 10) + (2 + 10) + 3
    assert done.devices == 3
    assert done.busy == (1, 1, 10 / 34)
    assert done.peak_memory_bytes[:2] == (1000 + 4 + 3 * 20,) * 2
    hidden = replace(machine, overlap=1.0)
    done = decoupled([replicated, StageWork(5, 5)], [decoupled_cut(20)], machine=hidden)
    assert done.step_us == 7 + 12 + 3


def test_replicas_average_what_their_heads_learn() -> None:
    """In one of four steps: 200 bytes at 100 a microsecond and two scalars, each in two rounds."""
    replicated = StageWork(10, 20, replicas=2)
    machine = Machine(reduce_bytes_per_s=100e6, reduce_latency_us=1.0)
    head = decoupled_cut(predict_us=2.0, learn_us=4.0, averaged_bytes=200, learns_every=4)
    done = decoupled([replicated, StageWork(1, 1)], [head], machine=machine)
    average_us = (2 + 200 / 100) + 2 * (2 + 4 / 100)
    assert done.step_us == pytest.approx((10 + 20 + 2 + 4) / 2 + average_us / 4)
    alone = replace(replicated, replicas=1)
    done = decoupled([alone, StageWork(1, 1)], [head], machine=machine)
    assert done.step_us == 10 + 20 + 2 + 4


def test_the_first_stage_loads_its_share_of_the_batch() -> None:
    stages = [StageWork(1, 1, loader_us=50, replicas=2), StageWork(1, 1, loader_us=70)]
    assert decoupled(stages, [decoupled_cut()]).step_us == 1 + 25


def test_cuts_that_skip_stages_are_simulated() -> None:
    stages = [StageWork(10, 20), StageWork(10, 20), StageWork(10, 30)]
    skip = decoupled_cut(source_stage=0, to=2)
    chain = [decoupled_cut(source_stage=0, to=1), decoupled_cut(source_stage=1, to=2)]
    done = decoupled(stages, [*chain, skip])
    assert (done.step_us, done.bottleneck, done.how) == (40, "stage2", "simulated")
    locked = decoupled(stages, [*chain, replace(skip, source="exact", nbytes=1)])
    assert locked.step_us > 60
    assert locked.bottleneck == "waiting"


def test_a_cut_that_leads_nowhere() -> None:
    with pytest.raises(PartitionError, match="from stage 0 to stage 2 of 2"):
        decoupled([StageWork(1, 1)] * 2, [cut(to=2)])


def test_the_longest_loop_is_found_among_all_pairs() -> None:
    """Stale gradients, windows and delays of all kinds: every pair of stages is a loop."""
    delays, windows = (300, 300, 0, 40, 300, 300, 40), (8, 6, 4, 9, 3, 5, 3)
    stages = [StageWork(3, 5, update_us=k) for k in range(8)]
    cuts = [
        cut(0, delay, source="stale", window=window)
        for delay, window in zip(delays, windows, strict=True)
    ]
    loops = []
    for first in range(7):
        us, span = 3.0 + 5 + first, 1
        for top in range(first + 1, 8):
            us += 2 * delays[top - 1] + 8
            span += windows[top - 1]
            loops.append(us / span)
    found, _ = longest_loop(EngineWork(stages, cuts, Machine()))
    assert found == pytest.approx(max(loops), rel=1e-12)
