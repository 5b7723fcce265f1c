"""What a person should know of a plan beyond its table: what is kept whole, shared, unguarded."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from dnic.partition.lateness import lateness
from dnic.partition.plan import Plan
from dnic.report.units import size
from dnic.trace import TracedModel


def plan_notes(traced: TracedModel, plan: Plan) -> Iterator[str]:
    """One line for each thing that the capture could not open, or that costs extra.

    Args:
        traced: the capture that code is generated from.
        plan: what was decided.
    """
    by_reason = sorted(traced.whole.items(), key=lambda entry: (entry[1], entry[0]))
    for reason, entries in groupby(by_reason, key=lambda entry: entry[1]):
        paths = [path for path, _ in entries]
        more = f" and {len(paths) - 1} like it" if len(paths) > 1 else ""
        yield f"kept whole: {paths[0]}{more} ({reason})"
    if traced.compiling:
        yield f"recorded as compilers see it, without {traced.compiling}"
    for line in traced.checks:
        yield f"not in the stages: the check on data at {line}"
    yield from _guard_notes(plan)
    pairs = sorted((s.owner, s.holders, s.nbytes, s.name) for s in plan.shared)
    for (owner, holders), group in groupby(pairs, key=lambda pair: pair[:2]):
        shared = list(group)
        names = shared[0][3] + (f" and {len(shared) - 1} more" if len(shared) > 1 else "")
        others = " and ".join(f"stage{holder}" for holder in holders)
        nbytes = size(sum(pair[2] for pair in shared))
        yield (
            f"shared: {names}: owned by stage{owner}, copied to {others} at every step, "
            f"{nbytes} each way"
        )


def _guard_notes(plan: Plan) -> Iterator[str]:
    """What guards can do where the true gradient cannot be awaited."""
    late = lateness(plan.interfaces, len(plan.stages))
    sparse = plan.train.update_probability < 1
    for interface in plan.interfaces:
        guard = interface.guard
        checked = interface.predicted and interface.return_every > 0
        if not checked or not guard or guard.fallback == "none":
            continue
        if late[interface.to] > late[interface.source]:
            why = f"the true gradients of stage{interface.to} are late"
        elif interface.return_every > 1:
            why = f"one true gradient in {interface.return_every} comes back"
        elif sparse:
            why = "stages update by chance"
        else:
            continue
        yield (
            f"guard: {interface.name} cannot go back to exact, because {why}: while its head is of "
            "no use it goes on without a gradient"
        )
