"""Every way to train the model on the devices, with its predicted speed, memory and staleness.

Each has the cuts that suit it: stages that do not wait are balanced with their heads, those of a
pipeline without. A way that a bundle cannot run yet is listed and marked, so that a user sees what
it would be worth; none is left out because it wins or loses.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from dnic.cost import Costs
from dnic.graph.graph import Graph
from dnic.partition.alternative import Alternative, checked
from dnic.partition.choose import Placement
from dnic.partition.cuts import cut_points
from dnic.partition.evaluate import stage_works
from dnic.partition.looped import looped
from dnic.partition.pipelined import pipelines
from dnic.partition.plan import PlannedTarget
from dnic.partition.request import PartitionRequest
from dnic.partition.setting import Setting, forced
from dnic.partition.unlocked import unlocked
from dnic.schedule import data_parallel, one_device


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
    alone = Setting(graph, cut_points(graph), costs, request, target, loader_us)
    together = replace(alone, costs=costs.crowded()) if request.crowded else alone
    found = [_one_device(alone)]
    if request.devices > 1:
        found += [*_data_parallel(together), *looped(together)]
        if (request.dealt_stages or 0) <= request.devices:
            found += [*pipelines(together), *unlocked(together)]
    found = _once([checked(alternative, request) for alternative in found])
    return tuple(sorted(found, key=lambda a: (bool(a.unfit), -a.useful_samples_per_s)))


def _one_device(setting: Setting) -> Alternative:
    sorts = setting.request.sorts
    fastest = max(range(len(sorts)), key=lambda group: sorts[group].speed)
    (work,) = stage_works(setting.costs, (), speeds=(sorts[fastest].speed,))
    outcome = one_device(work, setting.batch, setting.machine())
    return Alternative("one_device", outcome, Placement((), (), (fastest,), (1,), outcome.step_us))


def _data_parallel(setting: Setting) -> Iterator[Alternative]:
    """All devices, each with an equal share of the batch: the slowest sets the pace."""
    count = setting.request.devices
    if setting.batch < count or (setting.request.max_decoupled is None and forced(setting.request)):
        return
    speed = min(group.speed for group in setting.request.sorts)
    (work,) = stage_works(setting.costs, (), share=1 / count, speeds=(speed,))
    slowest = setting.request.slowest_link(setting.costs.profile.link)
    machine = setting.machine()
    if slowest != setting.costs.profile.link:
        machine = replace(machine, link=slowest, reduce_bytes_per_s=None, reduce_latency_us=None)
    outcome = data_parallel(work, count, setting.batch, machine)
    yield Alternative("ddp", outcome, Placement((), (), (0,), (count,), outcome.step_us))


def _once(found: list[Alternative]) -> list[Alternative]:
    """The better one of each name: locked stages are model parallelism however they came about."""
    best: dict[str, Alternative] = {}
    for alternative in found:
        there = best.get(alternative.name)
        if there is None or (bool(alternative.unfit), alternative.outcome.step_us) < (
            bool(there.unfit),
            there.outcome.step_us,
        ):
            best[alternative.name] = alternative
    return list(best.values())
