"""Step times of pipelines without running them.

GPipe is a line of stations (stages and wires) that the microbatches pass once forward and once
back: the first one through takes the sum of all stations, each further one the slowest station. It
holds for any stages and links.

1F1B of equal stages waits for round trips; interleaved 1F1B has a lower bound only, because how its
chunks meet on a device depends on the delays.
"""

from __future__ import annotations

from dnic.errors import PartitionError
from dnic.schedule.orders import in_flight
from dnic.schedule.pipeline_work import Pipeline


def gpipe_us(pipeline: Pipeline) -> float:
    """Step time of GPipe, any stages and links.

    The longest of the loops that begin with some stage's first forward, go up to the last stage and
    back, and end with that stage's update. Loops that do not begin with the first stage decide only
    where a later stage's update takes longer than the rest of the way.
    """
    last, more, share = len(pipeline.stages) - 1, pipeline.microbatches - 1, pipeline.share
    longest = through = slowest = slowest_back = 0.0
    for k in range(last, -1, -1):
        up, down = pipeline.forward_us(k), pipeline.backward_us(k)
        if k < last:
            cut = pipeline.cuts[k]
            wire, back_wire = cut.occupancy_us(share), cut.back_occupancy_us(share)
            through += wire + back_wire + 2 * cut.link.latency_us
            slowest, slowest_back = max(slowest, wire), max(slowest_back, back_wire)
            up, down = up + pipeline.message_us(k), down + pipeline.back_message_us(k)
        if k:
            up, down = up + pipeline.message_us(k - 1), down + pipeline.back_message_us(k - 1)
        through += up + down
        slowest, slowest_back = max(slowest, up), max(slowest_back, down)
        own_us = pipeline.start_us(k) + pipeline.update_us(k)
        longest = max(longest, own_us + through + more * (slowest + slowest_back))
    return longest


def one_f_one_b_us(pipeline: Pipeline) -> float:
    """Step time of 1F1B of equal stages and cuts.

    The step ends with the last microbatch's gradient at stage 0, and the longest way there goes
    through round trips: stage `i` has `p - i` microbatches in flight, so that its backward of
    microbatch `k + p - i` comes a round trip from it to the top after that of `k`. The fewest
    round trips that make up `m - 1` microbatches count the most latencies.

    Exact where messages only have latency. Where they keep processors or wires busy it is a lower
    bound: stages between two others handle more messages than the last one, which is counted.

    Raises:
        PartitionError: stages or cuts differ.
    """
    _check_equal(pipeline)
    devices, more, passes_us = pipeline.devices, pipeline.microbatches - 1, _passes_us(pipeline)
    if devices == 1:
        return pipeline.microbatches * passes_us + _ends_us(pipeline)
    hops_us = _hops_us(pipeline)
    trip_us = devices * passes_us + (devices - 1) * hops_us
    waits_us = (more - -(-more // devices)) * hops_us
    cut, share = pipeline.cuts[0], pipeline.share
    own_us = passes_us + pipeline.message_us(0) + pipeline.back_message_us(0)
    each_us = max(own_us, cut.occupancy_us(share), cut.back_occupancy_us(share))
    return trip_us + max(more * passes_us + waits_us, more * each_us) + _ends_us(pipeline)


def interleaved_bound_us(pipeline: Pipeline) -> float:
    """A step of interleaved 1F1B of equal stages and cuts takes at least this long.

    Both hold for any delays: the last device has all its work to do, after its first microbatch
    has come up and before its last gradient has gone down; and the first stage goes back to
    a microbatch a round trip after it, of which it has so many in flight as its order allows.

    Raises:
        PartitionError: stages or cuts differ.
    """
    _check_equal(pipeline)
    stages, devices, passes_us = len(pipeline.stages), pipeline.devices, _passes_us(pipeline)
    hops_us = _hops_us(pipeline) if devices > 1 else 0.0
    chunks = stages // devices
    messages_us = pipeline.message_us(0) + pipeline.back_message_us(0) if pipeline.cuts else 0.0
    own_us = pipeline.microbatches * (chunks * passes_us + (2 * chunks - 1) * messages_us)
    # The first message of all and the last one are on the way, not in the last device's time.
    way_us = (devices - 1) * (passes_us + hops_us) - (messages_us if devices > 1 else 0.0)
    first_stage = tuple(step for step in pipeline.orders[0] if step.stage == 0)
    rounds = -(-pipeline.microbatches // in_flight(first_stage))
    trips_us = rounds * (stages * passes_us + (stages - 1) * hops_us)
    return max(own_us + way_us, trips_us) + _ends_us(pipeline)


def _passes_us(pipeline: Pipeline) -> float:
    return pipeline.forward_us(0) + pipeline.backward_us(0)


def _hops_us(pipeline: Pipeline) -> float:
    """From one stage to the next and back: messages on both ends, wires, latencies."""
    if not pipeline.cuts:
        return 0.0
    cut, share = pipeline.cuts[0], pipeline.share
    ends_us = 2 * (pipeline.message_us(0) + pipeline.back_message_us(0))
    wires_us = cut.occupancy_us(share) + cut.back_occupancy_us(share)
    return ends_us + wires_us + 2 * cut.link.latency_us


def _ends_us(pipeline: Pipeline) -> float:
    """What the first device does once in a step: start and update."""
    return pipeline.start_us(0) + pipeline.update_us(0)


def _check_equal(pipeline: Pipeline) -> None:
    stages = {(stage.forward_us, stage.backward_us) for stage in pipeline.stages}
    cuts = {(cut.nbytes, cut.back_nbytes, cut.link, cut.message_us) for cut in pipeline.cuts}
    if len(stages) > 1 or len(cuts) > 1:
        raise PartitionError(
            "a pipeline that is too long to simulate, of unequal stages",
            expected="equal stages and cuts",
            hint="fewer stages or microbatches",
        )
