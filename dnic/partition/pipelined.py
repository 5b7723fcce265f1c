"""Ways to train in which stages work on the microbatches of one batch, and wait for gradients."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

from dnic.errors import PartitionError
from dnic.partition.alternative import Alternative, Name, checked
from dnic.partition.choose import Placement, place
from dnic.partition.evaluate import (
    chain_works,
    crossings_of,
    in_parts,
    shared_of,
    stage_works,
    with_loader,
)
from dnic.partition.setting import Setting, forced
from dnic.schedule import (
    MOST_PASSES,
    CutWork,
    StageWork,
    eager_one_f_one_b,
    fills_rounds,
    gpipe,
    naive,
    one_f_one_b,
    zero_bubble,
)

MOST_MICROBATCHES = 64


def pipelines(setting: Setting) -> Iterator[Alternative]:
    """The best number of stages and of microbatches for each schedule."""
    best: dict[Name, Alternative] = {}
    for stages in _stage_counts(setting):
        try:
            placement = place(
                setting.graph,
                setting.costs,
                setting.request,
                "pipeline",
                stages=stages,
                # What the first stage of 1F1B holds; each schedule's own is checked later.
                held=min(1.0, stages / max(microbatch_counts(setting))),
                reasons=forced(setting.request),
            )
        except PartitionError:
            if forced(setting.request):
                raise
            continue  # That many stages cannot be had, or do not fit; others may.
        for alternative in (*_schedules(setting, placement), *_hybrids(setting, placement)):
            alternative = checked(alternative, setting.request)
            there = best.get(alternative.name)
            if there is None or better(alternative, there):
                best[alternative.name] = alternative
    yield from best.values()


def better(one: Alternative, other: Alternative) -> bool:
    """Whether one fits where the other does not, or is faster."""
    if bool(one.unfit) != bool(other.unfit):
        return not one.unfit
    return one.outcome.step_us < other.outcome.step_us


def _stage_counts(setting: Setting) -> list[int]:
    request = setting.request
    if request.cuts is not None:
        return [len(request.cuts) + 1]
    if request.stages is not None:
        return [request.stages] if request.stages > 1 else []
    doubled = [2**k for k in range(1, request.devices.bit_length())]
    least = max(2, _fewest_that_fit(setting))
    counts = {*doubled, request.devices}
    if request.replicas != "auto":
        counts.add(request.devices // request.replicas)
    return sorted(n for n in counts if least <= n <= request.devices)


def _fewest_that_fit(setting: Setting) -> int:
    """As many stages as it takes at least to hold parameters, gradients and optimizer state."""
    rooms = [group.memory_bytes for group in setting.request.sorts]
    if None in rooms:
        return 1
    costs = setting.costs
    held = sum(costs.parameter_bytes) + sum(costs.gradient_bytes) + sum(costs.optimizer_bytes)
    return ceil(held / max(room for room in rooms if room is not None))


def microbatch_counts(setting: Setting) -> list[int]:
    """The numbers of microbatches that are looked at: what is asked for, or powers of two."""
    asked = setting.request.microbatches
    if asked != "auto":
        # As the runtime does: all of the same size.
        return [max(m for m in range(1, asked + 1) if setting.batch % m == 0)]
    # Long pipelines need many to fill, and few of the counts are worth looking at.
    devices = setting.request.devices
    most = max(MOST_MICROBATCHES, 4 * devices).bit_length()
    counts = [2**k for k in range(1, most) if 2**k >= devices // 16]
    return [m for m in counts if setting.batch % m == 0] or [1]


def chain(
    setting: Setting, placement: Placement, share: float
) -> tuple[tuple[StageWork, ...], tuple[CutWork, ...]]:
    """Stages and cuts as the schedules take them, for microbatches of a share of the batch."""
    works = stage_works(
        setting.costs, placement.cuts, share=share, speeds=setting.speeds(placement)
    )
    cuts = chain_works(
        setting.graph,
        setting.table,
        setting.costs,
        placement.cuts,
        setting.request,
        placement.groups,
    )
    return with_loader(works, setting.loader_us), cuts


def _schedules(setting: Setting, placement: Placement) -> Iterator[Alternative]:
    machine = setting.machine()
    works, cuts = chain(setting, placement, 1.0)
    outcome = naive(works, cuts, setting.batch, machine)
    yield Alternative("naive", outcome, placement)
    unfit = not_for_torch(setting, placement)
    asked = setting.request.schedule == "exact" and setting.request.microbatches != "auto"
    for m in microbatch_counts(setting):
        works, cuts = chain(setting, placement, 1 / m)
        if (unfit or asked) and m > 1:
            outcome = eager_one_f_one_b(works, cuts, m, setting.batch, machine)
            yield Alternative("1f1b", outcome, placement, microbatches=m, own=True)
        for name, schedule in (("gpipe", gpipe), ("1f1b", one_f_one_b)):
            if name == "1f1b" and (unfit or asked):
                continue  # Our engine's.
            if name == "1f1b" and m < placement.stages:
                continue  # torch's refuses: there is nothing to alternate.
            outcome = schedule(
                works, cuts, m, setting.batch, machine, posted_ahead=setting.posted_ahead
            )
            yield Alternative(name, outcome, placement, microbatches=m, unfit=unfit)  # type: ignore[arg-type]
        if fills_rounds(m, placement.stages) and m * placement.stages <= MOST_PASSES:
            outcome = zero_bubble(
                works, cuts, m, 1, setting.batch, machine, posted_ahead=setting.posted_ahead
            )
            why = unfit or setting.request.whole_backward
            yield Alternative("zero_bubble", outcome, placement, microbatches=m, unfit=why)


def _hybrids(setting: Setting, placement: Placement) -> Iterator[Alternative]:
    """1F1B over stages of several devices each, which average their gradients at the end.

    By our own engine, whatever torch's schedules can express.
    """
    request = setting.request
    copies = request.devices // placement.stages
    if request.replicas != "auto":
        copies = min(copies, request.replicas)
        if copies < request.replicas:
            return
    if copies < 2 or request.groups or setting.batch % copies:
        return
    machine = setting.machine()
    for m in microbatch_counts(setting):
        if setting.batch % (copies * m):
            continue
        works, cuts = chain(setting, placement, 1 / (copies * m))
        parts = tuple(
            replace(
                work,
                forward_us=work.forward_us / copies,
                backward_us=work.backward_us / copies,
                update_us=work.update_us + machine.allreduce_us(work.gradient_bytes, copies),
                activation_bytes=work.activation_bytes // copies,
            )
            for work in works
        )
        thinner = tuple(
            replace(
                cut,
                nbytes=cut.nbytes // copies,
                back_nbytes=cut.back_nbytes // copies,
                message_us=cut.message_at(1 / copies),
                back_message_us=cut.back_message_at(1 / copies),
            )
            for cut in cuts
        )
        try:
            one = eager_one_f_one_b(parts, thinner, m, setting.batch, machine)
        except PartitionError:
            # Too long to simulate with receives ahead, and unequal: plain 1F1B is near enough.
            one = one_f_one_b(
                parts, thinner, m, setting.batch, machine, posted_ahead=setting.posted_ahead
            )
        # The replicas of a stage have neighbouring numbers.
        outcome = replace(
            one,
            devices=copies * one.devices,
            busy=tuple(busy for busy in one.busy for _ in range(copies)),
            peak_memory_bytes=tuple(
                nbytes for nbytes in one.peak_memory_bytes for _ in range(copies)
            ),
        )
        spread = replace(placement, replicas=(copies,) * placement.stages)
        outcome = in_parts(outcome, works, spread, request, m)
        yield Alternative("1f1b_ddp", outcome, spread, microbatches=m)


def not_for_torch(setting: Setting, placement: Placement) -> str:
    """Why torch's schedules cannot run these stages; empty where they can."""
    for crossing in crossings_of(setting.graph, setting.table, placement.cuts):
        if crossing.to != crossing.source + 1:
            return f"{crossing.name} skips stages, which torch's schedules cannot"
    shared = shared_of(setting.graph, placement.cuts)
    if shared:
        return f"{shared[0].name} is shared by stages, which torch's schedules cannot"
    return ""
