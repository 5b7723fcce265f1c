"""Pipelines that deal several stages out to each device: interleaved 1F1B and zero-bubble.

More, smaller stages fill and drain a pipeline sooner and send more messages. Zero-bubble over one
stage a device is among `dnic.partition.pipelined`; ZBV is run, not predicted. Not handled: devices
of several sorts, among which a stage's turn may not suit it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dnic.errors import PartitionError
from dnic.partition.alternative import Alternative, checked
from dnic.partition.choose import Placement, place
from dnic.partition.pipelined import better, chain, microbatch_counts, not_for_torch
from dnic.partition.setting import Setting, forced
from dnic.schedule import MOST_PASSES, fills_rounds, interleaved, zero_bubble

CHUNKS = 2
# Hardly any model can be cut into two stages for each of more devices than this.
MOST_DEVICES = 64


def looped(setting: Setting) -> Iterator[Alternative]:
    """The best number of microbatches for each schedule, over two stages on each device.

    Over more where they are asked for.

    Raises:
        PartitionError: the stages that were asked for cannot be had.
    """
    placement = _placement(setting)
    if placement is None:
        return
    best: dict[str, Alternative] = {}
    for alternative in _schedules(setting, placement):
        alternative = checked(alternative, setting.request)
        there = best.get(alternative.name)
        if there is None or better(alternative, there):
            best[alternative.name] = alternative
    yield from best.values()


def _placement(setting: Setting) -> Placement | None:
    """Where the model is cut into so many stages; None where it is not to be, or cannot."""
    request = setting.request
    asked = request.dealt_stages
    if request.groups or request.devices > MOST_DEVICES or (forced(request) and asked is None):
        return None
    stages = asked or CHUNKS * request.devices
    if stages == request.devices:
        return None
    # The solver knows one stage for each device; memory is checked later, by device.
    wide = replace(request, schedule="auto", devices=stages, memory_bytes=None)
    try:
        placement = place(
            setting.graph, setting.costs, wide, "pipeline", stages=stages, reasons=asked is not None
        )
    except PartitionError:
        if asked is not None or request.schedule == "interleaved":
            raise
        return None
    return replace(placement, chunks=stages // request.devices)


def _schedules(setting: Setting, placement: Placement) -> Iterator[Alternative]:
    devices, batch, machine = setting.request.devices, setting.batch, setting.machine()
    ahead, unfit = setting.posted_ahead, not_for_torch(setting, placement)
    divided = unfit or setting.request.whole_backward
    for m in microbatch_counts(setting):
        if not fills_rounds(m, devices):
            continue
        works, cuts = chain(setting, placement, 1 / m)
        at = (works, cuts, m, placement.chunks, batch, machine)
        outcome = interleaved(*at, posted_ahead=ahead)
        yield Alternative("interleaved_1f1b", outcome, placement, microbatches=m, unfit=unfit)
        if placement.stages * m <= MOST_PASSES:
            outcome = zero_bubble(*at, posted_ahead=ahead)
            yield Alternative("zero_bubble", outcome, placement, microbatches=m, unfit=divided)
