"""Which choice an interface has: its own name's, its cut's, or the default."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dnic.errors import SpecError
from dnic.graph.graph import Graph
from dnic.partition import InterfaceChoice, PartitionRequest
from dnic.partition.cuts import CutTable, cut_points
from dnic.partition.interfaces import Crossing
from dnic.partition.matching import match_choices

Chain = Callable[..., Graph]
ONE, OTHER = InterfaceChoice(gradient="exact"), InterfaceChoice(gradient="local")


@pytest.fixture
def table(chain: Chain) -> CutTable:
    return cut_points(chain([1_000_000] * 6))


@pytest.fixture
def cuts(table: CutTable) -> tuple[int, ...]:
    return tuple(table.gap_after(name, "here") for name in ("layers.1", "layers.3"))


@pytest.fixture
def crossings(table: CutTable, cuts: tuple[int, ...]) -> tuple[Crossing, ...]:
    """Two neighbours, and a tensor that skips the stage between them."""
    first, second = (table.points[gap].tensors for gap in cuts)
    return (
        Crossing("layers.1", 0, 1, "layers.1", first),
        Crossing("layers.1->stage2", 0, 2, "layers.1", first),
        Crossing("layers.3", 1, 2, "layers.3", second),
    )


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, (InterfaceChoice(), InterfaceChoice(), InterfaceChoice())),
        ({"layers.3": ONE}, (InterfaceChoice(), InterfaceChoice(), ONE)),
        # By the operation that ends at the cut: the neighbours', not what skips a stage.
        ({"layers_1": ONE}, (ONE, InterfaceChoice(), InterfaceChoice())),
        ({"layers.1->stage2": ONE, "layers.3": OTHER}, (InterfaceChoice(), ONE, OTHER)),
    ],
)
def test_the_choice_of_each_interface(
    asked: dict[str, InterfaceChoice],
    expected: tuple[InterfaceChoice, ...],
    table: CutTable,
    cuts: tuple[int, ...],
    crossings: tuple[Crossing, ...],
) -> None:
    request = PartitionRequest(3, choices=asked)
    assert match_choices(crossings, request, table, cuts) == expected


def test_a_name_of_no_interface(
    table: CutTable, cuts: tuple[int, ...], crossings: tuple[Crossing, ...]
) -> None:
    with pytest.raises(SpecError, match=r"no interface 'layers\.2'") as caught:
        match_choices(crossings, PartitionRequest(3, choices={"layers.2": ONE}), table, cuts)
    assert caught.value.where == "interfaces.layers.2"
    assert caught.value.expected == "one of layers.1, layers.1->stage2, layers.3"
    with pytest.raises(SpecError) as alone:
        match_choices((), PartitionRequest(1, choices={"layers.2": ONE}), table, ())
    assert alone.value.expected == "no interface: the plan has one stage"
