"""Which of the spec's choices is for which interface."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from dnic.errors import SpecError
from dnic.partition.cuts import CutTable
from dnic.partition.request import InterfaceChoice, PartitionRequest
from dnic.spec.nearest import nearest

if TYPE_CHECKING:
    from dnic.partition.interfaces import Crossing


def match_choices(
    crossings: Sequence[Crossing],
    request: PartitionRequest,
    table: CutTable,
    cuts: tuple[int, ...],
) -> tuple[InterfaceChoice, ...]:
    """What is asked for each interface.

    A choice names the interface, or any module or operation that ends at its cut.

    Raises:
        SpecError: a choice names no interface of this plan.
    """
    by_name: dict[str, InterfaceChoice] = {}
    neighbours = {c.source: c.name for c in crossings if c.to == c.source + 1}
    for name, choice in request.choices.items():
        where = f"interfaces.{name}"
        found: str | None = name if any(c.name == name for c in crossings) else None
        if found is None and "->" not in name:
            gap = table.gap_after(name, where)
            found = neighbours.get(cuts.index(gap)) if gap in cuts else None
        if found is None:
            raise _no_interface(name, where, crossings)
        by_name[found] = choice
    return tuple(by_name.get(crossing.name, request.default) for crossing in crossings)


def _no_interface(name: str, where: str, crossings: Sequence[Crossing]) -> SpecError:
    names = [crossing.name for crossing in crossings]
    close = nearest(name, names)
    return SpecError(
        f"this plan has no interface {name!r}",
        where=where,
        expected=f"one of {', '.join(names)}" if names else "no interface: the plan has one stage",
        hint=close or f"{name} in partition.cuts, to cut there",
    )
