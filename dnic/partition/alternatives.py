"""Every way to train the model on the devices, with its predicted speed, memory and staleness.

Each has the cuts that suit it: stages that do not wait are balanced with their heads, those of a
pipeline without. A way that a bundle cannot run yet is listed and marked, so that a user sees what
it would be worth; none is left out because it wins or loses.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Literal

from dnic.cost import Costs
from dnic.errors import PartitionError
from dnic.graph.graph import Graph
from dnic.partition.alternative import Alternative, Name, checked
from dnic.partition.choose import Placement, place
from dnic.partition.cuts import CutTable, cut_points
from dnic.partition.evaluate import (
    chain_works,
    crossings_of,
    machine_of,
    shared_of,
    stage_works,
    with_loader,
)
from dnic.partition.interfaces import Decided, decide_interfaces, match_choices
from dnic.partition.plan import PlannedTarget
from dnic.partition.request import PartitionRequest
from dnic.schedule import (
    CutWork,
    Machine,
    StageWork,
    data_parallel,
    decoupled,
    gpipe,
    interleaved,
    naive,
    one_device,
    one_f_one_b,
)

MICROBATCHES = (2, 4, 8, 16, 32, 64)
CHUNKS = 2


@dataclass(frozen=True)
class _Setting:
    """What all ways have in common."""

    graph: Graph
    table: CutTable
    costs: Costs
    request: PartitionRequest
    target: PlannedTarget | None
    loader_us: float

    @property
    def batch(self) -> int:
        """Samples in a batch."""
        return self.graph.batch_size

    def machine(self) -> Machine:
        """What does not belong to one stage."""
        return machine_of(self.costs, overlap=self.request.overlap)

    def speeds(self, placement: Placement) -> tuple[float, ...]:
        """Of each stage's device."""
        return tuple(self.request.sorts[group].speed for group in placement.groups)


def alternatives(
    graph: Graph,
    costs: Costs,
    request: PartitionRequest,
    target: PlannedTarget | None,
    *,
    loader_us: float = 0.0,
) -> tuple[Alternative, ...]:
    """Every way to train, fastest first.

    Args:
        graph: the fine capture.
        costs: of its operations on a device of speed 1, reading batches included.
        request: what is asked for.
        target: what training targets look like; None without training data.
        loader_us: reading a batch: what a pipeline's last stage does too.

    Raises:
        SpecError, PartitionError: the request cannot be met by any decoupled or pipelined plan,
            although it names stages or cuts.
    """
    alone = _Setting(graph, cut_points(graph), costs, request, target, loader_us)
    together = replace(alone, costs=costs.crowded()) if request.crowded else alone
    found = [_one_device(alone)]
    if request.devices > 1:
        found += [*_data_parallel(together), *_pipelines(together), *_decoupled(together)]
    found = [checked(alternative, request) for alternative in found]
    return tuple(sorted(found, key=lambda a: (bool(a.unfit), -a.useful_samples_per_s)))


def _one_device(setting: _Setting) -> Alternative:
    sorts = setting.request.sorts
    fastest = max(range(len(sorts)), key=lambda group: sorts[group].speed)
    (work,) = stage_works(setting.costs, (), speeds=(sorts[fastest].speed,))
    outcome = one_device(work, setting.batch, setting.machine())
    return Alternative("one_device", outcome, Placement((), (), (fastest,), (1,), outcome.step_us))


def _data_parallel(setting: _Setting) -> Iterator[Alternative]:
    """All devices, each with an equal share of the batch: the slowest sets the pace."""
    count = setting.request.devices
    if setting.batch < count or (
        setting.request.max_decoupled is None and _forced(setting.request)
    ):
        return
    speed = min(group.speed for group in setting.request.sorts)
    (work,) = stage_works(setting.costs, (), share=1 / count, speeds=(speed,))
    slowest = setting.request.slowest_link(setting.costs.profile.link)
    machine = setting.machine()
    if slowest != setting.costs.profile.link:
        machine = replace(machine, link=slowest, reduce_bytes_per_s=None, reduce_latency_us=None)
    outcome = data_parallel(work, count, setting.batch, machine)
    yield Alternative("ddp", outcome, Placement((), (), (0,), (count,), outcome.step_us))


def _forced(request: PartitionRequest) -> bool:
    """Whether the model must be cut: then it is not on every device whole."""
    return request.cuts is not None or (request.stages or 1) > 1


def _pipelines(setting: _Setting) -> Iterator[Alternative]:
    """The best number of stages and of microbatches for each schedule."""
    best: dict[Name, Alternative] = {}
    for stages in _stage_counts(setting):
        try:
            placement = place(
                setting.graph, setting.costs, setting.request, "pipeline", stages=stages
            )
        except PartitionError:
            continue  # That many stages cannot be had, or do not fit; others may.
        for alternative in _schedules(setting, placement):
            alternative = checked(alternative, setting.request)
            there = best.get(alternative.name)
            if there is None or _better(alternative, there):
                best[alternative.name] = alternative
    yield from best.values()
    looped = _interleaved(setting)
    if looped is not None:
        yield looped


def _better(one: Alternative, other: Alternative) -> bool:
    if bool(one.unfit) != bool(other.unfit):
        return not one.unfit
    return one.outcome.step_us < other.outcome.step_us


def _stage_counts(setting: _Setting) -> list[int]:
    request = setting.request
    if request.cuts is not None:
        return [len(request.cuts) + 1]
    if request.stages is not None:
        return [request.stages] if request.stages > 1 else []
    doubled = [2**k for k in range(1, request.devices.bit_length())]
    return sorted({n for n in (*doubled, request.devices) if 2 <= n <= request.devices})


def _microbatches(setting: _Setting) -> list[int]:
    asked = setting.request.microbatches
    if asked != "auto":
        return [asked]
    return [m for m in MICROBATCHES if setting.batch % m == 0] or [1]


def _chain(
    setting: _Setting, placement: Placement, share: float
) -> tuple[tuple[StageWork, ...], tuple[CutWork, ...]]:
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


def _schedules(setting: _Setting, placement: Placement) -> Iterator[Alternative]:
    machine = setting.machine()
    works, cuts = _chain(setting, placement, 1.0)
    outcome = naive(works, cuts, setting.batch, machine)
    yield Alternative("naive", outcome, placement)
    unfit = _not_for_torch(setting, placement)
    for m in _microbatches(setting):
        works, cuts = _chain(setting, placement, 1 / m)
        for name, schedule in (("gpipe", gpipe), ("1f1b", one_f_one_b)):
            outcome = schedule(works, cuts, m, setting.batch, machine)
            yield Alternative(name, outcome, placement, microbatches=m, unfit=unfit)  # type: ignore[arg-type]


def _not_for_torch(setting: _Setting, placement: Placement) -> str:
    """Why torch's schedules cannot run these stages; empty where they can."""
    for crossing in crossings_of(setting.graph, setting.table, placement.cuts):
        if crossing.to != crossing.source + 1:
            return f"{crossing.name} skips stages, which torch's schedules cannot"
    shared = shared_of(setting.graph, placement.cuts)
    if shared:
        return f"{shared[0].name} is shared by stages, which torch's schedules cannot"
    return ""


def _interleaved(setting: _Setting) -> Alternative | None:
    """Two stages on each device; predicted only."""
    request = setting.request
    if request.groups or _forced(request):
        return None
    devices = request.devices
    wide = replace(request, devices=CHUNKS * devices, memory_bytes=None)
    try:
        placement = place(setting.graph, setting.costs, wide, "pipeline", stages=CHUNKS * devices)
    except PartitionError:
        return None
    best: Alternative | None = None
    for m in _microbatches(setting):
        if m % devices:
            continue
        works, cuts = _chain(setting, placement, 1 / m)
        outcome = interleaved(works, cuts, m, CHUNKS, setting.batch, setting.machine())
        found = Alternative("interleaved_1f1b", outcome, placement, microbatches=m)
        if best is None or _better(found, best):
            best = found
    return best


def _decoupled(setting: _Setting) -> Iterator[Alternative]:
    """Stages that do not wait, with every source of gradients on the same cuts."""
    request = setting.request
    placement = place(setting.graph, setting.costs, request)
    if placement.stages == 1 and not _forced(request) and request.stages is None:
        # No cut pays. What the best one would cost is shown all the same.
        with suppress(PartitionError):
            placement = place(setting.graph, setting.costs, request, stages=2)
    if placement.stages > 1:
        yield from _sources(setting, placement)
    counts = _replica_counts(setting)
    if len(counts) > 1:
        with suppress(PartitionError):
            wide = place(setting.graph, setting.costs, request, replicas=counts)
            if wide.stages > 1 and max(wide.replicas) > 1:
                found = _evaluated(setting, wide, "decoupled_replicas")
                yield found


def _replica_counts(setting: _Setting) -> tuple[int, ...]:
    asked, devices = setting.request.replicas, setting.request.devices
    if asked != "auto":
        return (asked,) if asked == 1 else (1, asked)
    if devices < 3:
        return (1,)
    return tuple(r for r in (2**k for k in range(devices.bit_length())) if setting.batch % r == 0)


def _sources(setting: _Setting, placement: Placement) -> Iterator[Alternative]:
    made = _evaluated(setting, placement, "decoupled")
    yield made
    if made.decided is None or "synthetic" not in made.placement.sources:
        return
    yield _with_source(setting, made, "stale")


def _evaluated(setting: _Setting, placement: Placement, name: Name) -> Alternative:
    """Heads and windows for these stages, and what comes of them."""
    crossing = crossings_of(setting.graph, setting.table, placement.cuts)
    works = stage_works(
        setting.costs,
        placement.cuts,
        speeds=setting.speeds(placement),
        replicas=placement.replicas,
    )
    decided = decide_interfaces(
        crossing,
        match_choices(crossing, setting.request, setting.table, placement.cuts),
        setting.request,
        [work.forward_us + work.backward_us + work.update_us for work in works],
        setting.costs.profile,
        setting.batch,
        setting.target,
        placement,
    )
    cuts = _cut_works(setting, decided)
    outcome = decoupled(works, cuts, setting.batch, setting.machine())
    if not any(cut.source != "exact" for cut in cuts):
        name = "naive"
    penalty = sum(
        setting.request.choice_at(f.name).penalty_of("synthetic")
        for f in decided.interfaces
        if f.gradient == "synthetic"
    )
    windows = tuple(f.window for f in decided.interfaces if f.gradient == "synthetic")
    return Alternative(name, outcome, placement, windows=windows, penalty=penalty, decided=decided)


def _cut_works(setting: _Setting, decided: Decided) -> tuple[CutWork, ...]:
    profile = setting.costs.profile
    machine = setting.machine()
    works = []
    for interface, flow, head in zip(decided.interfaces, decided.flows, decided.heads, strict=True):
        predicted = interface.head is not None
        works.append(
            CutWork(
                nbytes=flow.nbytes,
                back_nbytes=flow.gradient_nbytes,
                link=flow.link,
                source="synthetic" if predicted or not flow.locked else "exact",
                message_us=machine.message_us(flow.nbytes) if flow.nbytes else 0.0,
                message_fixed_us=profile.overhead_us if flow.nbytes else 0.0,
                back_message_us=machine.message_us(flow.gradient_nbytes)
                if flow.gradient_nbytes
                else 0.0,
                predict_us=head.forward_us,
                learn_us=head.train_us,
                head_bytes=4 * head.parameters,
                window=flow.window or 1,
                source_stage=interface.source,
                to=interface.to,
            )
        )
    return tuple(works)


def _with_source(setting: _Setting, made: Alternative, name: Literal["stale"]) -> Alternative:
    """The same stages with the true gradient, late, in place of every predicted one."""
    assert made.decided is not None
    works = stage_works(setting.costs, made.placement.cuts, speeds=setting.speeds(made.placement))
    cuts = tuple(
        replace(cut, source=name, predict_us=0.0, learn_us=0.0, head_bytes=0)
        if cut.source == "synthetic"
        else cut
        for cut in _cut_works(setting, made.decided)
    )
    outcome = decoupled(works, cuts, setting.batch, setting.machine())
    return replace(made, name=name, outcome=outcome, penalty=0.0, decided=None)
