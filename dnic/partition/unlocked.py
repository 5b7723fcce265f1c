"""Ways to train in which stages do not wait for one another's gradients."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from math import ceil
from typing import Literal, get_args

from dnic.cost import returned_share
from dnic.errors import PartitionError, SpecError
from dnic.partition.alternative import Alternative, Name
from dnic.partition.choose import Placement, place
from dnic.partition.context import Sight
from dnic.partition.evaluate import in_parts, shared_of, stage_works
from dnic.partition.interfaces import Decided, decide_interfaces
from dnic.partition.matching import match_choices
from dnic.partition.plan import PlannedInterface
from dnic.partition.request import InterfaceChoice
from dnic.partition.setting import Setting, forced
from dnic.partition.stages import crossings, stages_of
from dnic.schedule import CutWork, Outcome, StageWork, decoupled
from dnic.schedule.engine_work import EngineWork
from dnic.schedule.work import Source

# A copy of a shared parameter, its gradient, and both on their way.
SHARED_COPIES = 4
# What else could predict, beside what a plan takes: shown with its speed.
Predictor = Literal["synthetic", "virtual", "local"]
PREDICTORS: tuple[Predictor, ...] = get_args(Predictor)
# Beyond these, what only shows what else there could be takes longer than all the rest.
MOST_SIMULATED = 64
MOST_SEARCHED = 1_000_000


def unlocked(setting: Setting) -> Iterator[Alternative]:
    """Stages that do not wait, with every source of gradients on the same cuts."""
    request = setting.request
    needed = not request.free and not request.deals
    try:
        placement = place(
            setting.graph, setting.costs, request, reasons=needed, target=setting.target
        )
    except PartitionError:
        if needed:
            raise
        # Nothing fits. What it would take is shown beside what does fit.
        placement = place(
            setting.graph, setting.costs, request.without_limits(), target=setting.target
        )
    if placement.stages == 1 and not forced(request) and request.stages is None:
        # No cut pays. What the best one would cost is shown all the same.
        with suppress(PartitionError):
            placement = place(
                setting.graph, setting.costs, request, stages=2, target=setting.target
            )
    if placement.stages > 1:
        yield from _sources(setting, placement)
    counts = _replica_counts(setting)
    size = len(setting.table.points) * request.devices
    if max(counts) > 1 and (size <= MOST_SEARCHED or request.replicas != "auto"):
        yield from _replicated(setting, counts)


def _replicated(setting: Setting, counts: Sequence[int]) -> Iterator[Alternative]:
    """Stages of several replicas, where that fits.

    Raises:
        PartitionError: replicas are asked for, and a source that cannot learn in them.
    """
    request = setting.request
    given = setting.graph, setting.costs, request
    try:
        wide = place(*given, replicas=counts, tidy=False, reasons=False, target=setting.target)
        if wide.stages == 1 or max(wide.replicas) == 1:
            return
    except PartitionError:
        return
    try:
        found = _evaluated(setting, wide, "decoupled_replicas")
    except PartitionError:
        if request.replicated and request.schedule in ("auto", "decoupled"):
            raise
        return
    yield found


def _replica_counts(setting: Setting) -> tuple[int, ...]:
    asked, devices = setting.request.replicas, setting.request.devices
    if asked != "auto":
        return (asked,)
    if devices < 3:
        return (1,)
    return tuple(r for r in (2**k for k in range(devices.bit_length())) if setting.batch % r == 0)


def _sources(setting: Setting, placement: Placement) -> Iterator[Alternative]:
    made = _evaluated(setting, placement, "decoupled")
    yield made
    if made.decided is None or "synthetic" not in made.placement.sources:
        return
    if made.outcome.how == "formula" or placement.stages <= MOST_SIMULATED:
        yield _with_source(setting, made, "stale")
        taken = {f.gradient for f in made.decided.interfaces}
        for name in PREDICTORS:
            if taken != {name}:
                with suppress(PartitionError, SpecError):
                    yield _with_predictor(setting, made, name)


def _evaluated(setting: Setting, placement: Placement, name: Name) -> Alternative:
    """Heads and windows for these stages, and what comes of them."""
    graph, table, request = setting.graph, setting.table, setting.request
    stage = stages_of(graph, placement.cuts)
    sight = Sight.over(graph, stage, table, request, setting.target, placement)
    after = tuple(table.name(gap) for gap in placement.cuts)
    crossing = crossings(graph, stage, after, sight.wanted)
    works = stage_works(
        setting.costs,
        placement.cuts,
        speeds=setting.speeds(placement),
        replicas=placement.replicas,
    )
    decided = decide_interfaces(
        crossing,
        match_choices(crossing, request, table, placement.cuts),
        request,
        [work.forward_us + work.backward_us + work.update_us for work in works],
        setting.costs.profile,
        setting.batch,
        setting.target,
        placement,
        sight,
    )
    outcome = _outcome(setting, placement, works, _cut_works(setting, decided))
    outcome = in_parts(outcome, works, placement, request)
    apart = [f for f in decided.interfaces if f.gradient != "exact"]
    locked = all(f.gradient == "exact" for f in decided.interfaces if f.differentiable)
    if locked:
        name = "naive" if max(placement.replicas) == 1 else "1f1b_ddp"
    return Alternative(
        name,
        outcome,
        placement,
        windows=tuple(f.window for f in apart),
        penalty=sum(_penalty(setting, placement, f, f.gradient) for f in apart),
        decided=decided,
    )


def _penalty(
    setting: Setting, placement: Placement, interface: PlannedInterface, source: str
) -> float:
    """Share of further steps that a source of gradients costs at an interface."""
    choice = setting.request.choice_at(interface.name)
    if interface.to != interface.source + 1:
        # A probe measures all that crosses a cut at once: it counts for the neighbours.
        return choice.penalty_of(source)
    gap = placement.cuts[interface.source]
    return setting.request.penalty_at(gap, choice, source, interface.window).counted


def _kind(interface: PlannedInterface) -> Source:
    """What a schedule sees of a source: whether it waits, predicts, or needs no gradient."""
    if interface.gradient == "exact" and interface.differentiable:
        return "exact"
    if interface.gradient == "stale" and interface.differentiable:
        return "stale"
    return "synthetic" if interface.return_every or not interface.differentiable else "local"


def _outcome(
    setting: Setting,
    placement: Placement,
    works: tuple[StageWork, ...],
    cuts: tuple[CutWork, ...],
) -> Outcome:
    """The engine's steady state.

    A late stage copies its weights before each update, and may begin with a head. What skips stages
    and brings nothing back (labels, masks) holds nobody up: only the time that its messages take
    counts, so that the rest is a chain.
    """
    loose = [cut for cut in cuts if cut.back_nbytes == 0 and cut.to != (cut.source_stage or 0) + 1]
    stages = [
        replace(work, update_us=work.update_us + copy_us)
        for work, copy_us in zip(works, _copies_us(setting, works, cuts), strict=True)
    ]
    for cut in cuts:
        if cut.source == "stale":
            index = cut.source_stage or 0
            update_us = stages[index].update_us + cut.predict_us + cut.learn_us
            stages[index] = replace(stages[index], update_us=update_us)
    for cut in loose:
        for index in (cut.source_stage or 0, cut.to or 0):
            update_us = stages[index].update_us + cut.message_us
            stages[index] = replace(stages[index], update_us=update_us)
    kept = [cut for cut in cuts if cut not in loose]
    machine = replace(setting.machine(), step_us=setting.costs.profile.engine_step_us)
    outcome = decoupled(stages, kept, setting.batch, machine)
    shared = _shared_works(setting, placement, cuts)
    if shared:
        memory = list(outcome.peak_memory_bytes)
        for work in shared:
            first = sum(placement.replicas[: work.to or 0])
            for device in range(first, first + placement.replicas[work.to or 0]):
                memory[device] += SHARED_COPIES * work.nbytes
        outcome = decoupled(stages, [*kept, *shared], setting.batch, machine)
        outcome = replace(outcome, peak_memory_bytes=tuple(memory))
    extra = tuple((cut.nbytes, 0) for cut in loose)
    return replace(outcome, link_bytes=outcome.link_bytes + extra)


def _copies_us(
    setting: Setting, works: Sequence[StageWork], cuts: Sequence[CutWork]
) -> Iterator[float]:
    """Time of each stage's copy of its weights: reading and writing them."""
    late = EngineWork(works, cuts, setting.machine()).staleness()
    for work, batches in zip(works, late, strict=True):
        moved = 2 * work.parameter_bytes if batches else 0
        yield moved / setting.costs.profile.bytes_per_s * 1e6


def _shared_works(
    setting: Setting, placement: Placement, cuts: tuple[CutWork, ...]
) -> list[CutWork]:
    """A parameter that several stages use goes from its owner to the others in every step."""
    window = {cut.source_stage: cut.window for cut in cuts}
    machine, fallback = setting.machine(), setting.costs.profile.link
    return [
        CutWork(
            nbytes=shared.nbytes,
            back_nbytes=shared.nbytes,
            link=setting.request.link(
                placement.groups[shared.owner], placement.groups[holder], fallback
            ),
            source="synthetic",
            message_us=machine.message_us(shared.nbytes),
            window=max(1, sum(window.get(stage, 2) for stage in range(shared.owner, holder))),
            source_stage=shared.owner,
            to=holder,
        )
        for shared in shared_of(setting.graph, placement.cuts)
        for holder in shared.holders
    ]


def _cut_works(setting: Setting, decided: Decided) -> tuple[CutWork, ...]:
    profile = setting.costs.profile
    machine = setting.machine()
    works = []
    for interface, flow, head in zip(decided.interfaces, decided.flows, decided.heads, strict=True):
        # Of a mean step: gradients that come back every k-th time weigh a k-th.
        every = (flow.return_every or 1) * (interface.head.train_every if interface.head else 1)
        share = returned_share(flow.return_every)
        returned = ceil(flow.gradient_nbytes * share)
        works.append(
            CutWork(
                nbytes=flow.nbytes,
                back_nbytes=returned,
                link=flow.link,
                source=_kind(interface),
                message_us=machine.message_us(flow.nbytes) if flow.nbytes else 0.0,
                message_fixed_us=profile.overhead_us if flow.nbytes else 0.0,
                back_message_us=machine.message_us(flow.gradient_nbytes) * share
                if flow.gradient_nbytes
                else 0.0,
                predict_us=head.forward_us,
                learn_us=head.train_us / every,
                head_bytes=4 * head.parameters,
                averaged_bytes=head.averaged_bytes,
                learns_every=every,
                window=flow.window or 1,
                source_stage=interface.source,
                to=interface.to,
            )
        )
    return tuple(works)


def _with_predictor(setting: Setting, made: Alternative, name: Predictor) -> Alternative:
    """The same stages with another predictor wherever `auto` was free to take one.

    What it costs in quality is not known here: it must be asked for, as an interface's `gradient`.

    Raises:
        PartitionError: it cannot be built for these interfaces, or none is free.
    """
    request = setting.request

    def with_it(choice: InterfaceChoice) -> InterfaceChoice:
        free = choice.gradient == "auto" and choice.predicts
        return replace(choice, sources=(name,), hidden_layers="auto") if free else choice

    choices = {key: with_it(choice) for key, choice in request.choices.items()}
    asked = replace(request, default=with_it(request.default), choices=choices)
    found = _evaluated(replace(setting, request=asked), made.placement, name)
    if found.name != name or not any(f.gradient == name for f in found.decided_interfaces):
        raise PartitionError(f"no interface can have a {name} gradient")
    return replace(found, unasked=True, decided=None)


def _with_source(setting: Setting, made: Alternative, name: Literal["stale"]) -> Alternative:
    """The same stages with the true gradient, late, in place of every predicted one."""
    assert made.decided is not None
    works = stage_works(setting.costs, made.placement.cuts, speeds=setting.speeds(made.placement))
    apart = [f for f in made.decided.interfaces if f.gradient != "exact"]
    # Where only every k-th gradient came back, all of them must.
    flows = tuple(replace(flow, return_every=1) for flow in made.decided.flows)
    returning = tuple(f.model_copy(update={"return_every": 1}) for f in made.decided.interfaces)
    cuts = tuple(
        replace(cut, source=name, predict_us=0.0, learn_us=0.0, head_bytes=0)
        if cut.source in ("synthetic", "local")
        else cut
        for cut in _cut_works(setting, replace(made.decided, flows=flows, interfaces=returning))
    )
    choices = [setting.request.choice_at(f.name) for f in apart]
    return replace(
        made,
        name=name,
        outcome=_outcome(setting, made.placement, works, cuts),
        penalty=sum(_penalty(setting, made.placement, f, name) for f in apart),
        unasked=not all(choice.stale for choice in choices),
        decided=None,
    )
