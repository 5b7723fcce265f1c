"""The steady-state step time of decoupled stages, and the window that does not limit it.

Measured within 3% on three models over five links:

    step = max(T_up, T_down, transfer, (RTT + 2 * transfer + T_down) / window)

generalised to any number of stages: the last term's T_down becomes every stage on the way from the
source of an interface to its end. Stages that wait for one another's exact gradient (a locked
group) run one after the other. Contention of stages for one machine's memory or cores, and
microbatches within a locked group, are not modelled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import networkx as nx

from dnic.cost import Link, occupancy_us, returned_share

SMALLEST_WINDOW = 2


@dataclass(frozen=True)
class Flow:
    """The traffic of one interface, or of one shared parameter.

    Attributes:
        name: of the interface or the parameter.
        source, to: indices of its stages.
        nbytes: sent with each batch.
        gradient_nbytes: that come back, when they do.
        link: between the two devices.
        locked: whether the source waits for the exact gradient.
        window: batches in flight at most; None where it is still to be chosen.
        what: which of the two it is, for messages.
        return_every: the gradients of every so many batches come back; 0: none.
    """

    name: str
    source: int
    to: int
    nbytes: int
    gradient_nbytes: int
    link: Link
    locked: bool
    window: int | None = None
    what: str = "interface"
    return_every: int = 1


def locked_groups(stages: int, flows: Sequence[Flow]) -> list[set[int]]:
    """Stages that wait for one another, and each other stage by itself, in order."""
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from(range(stages))
    graph.add_edges_from((flow.source, flow.to) for flow in flows if flow.locked)
    return sorted(nx.connected_components(graph), key=min)


def round_trip_us(flow: Flow, stage_us: Sequence[float], groups: Sequence[set[int]]) -> float:
    """Microseconds from sending a batch until its gradient is back."""
    on_the_way = set(range(flow.source + 1, flow.to + 1))
    for group in groups:
        if flow.to in group:
            on_the_way |= group - {flow.source}
    moved = occupancy_us(flow.nbytes + flow.gradient_nbytes, flow.link)
    return 2 * flow.link.latency_us + moved + sum(stage_us[i] for i in on_the_way)


def limits_us(stage_us: Sequence[float], flows: Sequence[Flow]) -> dict[str, float]:
    """Every lower bound of the step time, by what causes it. Windows not yet chosen do not limit.

    Args:
        stage_us: the time of each stage's own work in one step, heads and messages included.
        flows: the interfaces.
    """
    groups = locked_groups(len(stage_us), flows)
    bounds: dict[str, float] = {}
    for group in groups:
        waiting = [f for f in flows if f.locked and f.source in group]
        bounds[" + ".join(f"stage{i}" for i in sorted(group))] = sum(
            stage_us[i] for i in group
        ) + sum(
            2 * f.link.latency_us + occupancy_us(f.nbytes + f.gradient_nbytes, f.link)
            for f in waiting
        )
    for flow in flows:
        if flow.locked:
            continue
        back_us = occupancy_us(flow.gradient_nbytes, flow.link) * returned_share(flow.return_every)
        busiest_us = max(occupancy_us(flow.nbytes, flow.link), back_us)
        bounds[f"{flow.what} {flow.name}: transfer"] = busiest_us
        # Where nothing comes back nobody waits for it.
        if flow.window is not None and (flow.return_every or not flow.gradient_nbytes):
            away = round_trip_us(flow, stage_us, groups)
            bounds[f"{flow.what} {flow.name}: window"] = away / flow.window
    return bounds


def predict_step(stage_us: Sequence[float], flows: Sequence[Flow]) -> tuple[float, str]:
    """Step time in microseconds, and what limits it: `stage1`, `interface layers.2: transfer`."""
    bounds = limits_us(stage_us, flows)
    bottleneck = max(bounds, key=bounds.__getitem__)
    return bounds[bottleneck], bottleneck


def smallest_window(
    flow: Flow,
    stage_us: Sequence[float],
    flows: Sequence[Flow],
    *,
    least: int = SMALLEST_WINDOW,
    waited: float = 0.0,
) -> int:
    """The smallest window at which waiting for `flow` does not limit the step.

    Args:
        flow: of an interface or a shared parameter.
        stage_us: the time of each stage's own work in one step.
        flows: all of them.
        least: batches in flight at least.
        waited: part of a step by which waiting may limit it all the same.
    """
    step_us = (1 + waited) * max(limits_us(stage_us, flows).values())
    if step_us <= 0:
        return least
    away = round_trip_us(flow, stage_us, locked_groups(len(stage_us), flows))
    # Rounded first: a round trip of exactly two steps must not ask for three.
    return max(least, ceil(round(away / step_us, 9)))
