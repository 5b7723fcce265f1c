"""Lanes beside the rows of a stage."""

from __future__ import annotations

from collections.abc import Sequence

from dnic.graph.drawing import Rectangle
from dnic.partition.plan import PlannedOperation
from dnic.report.column import MOST_LANES, column, lane_left, lanes
from dnic.report.outline import outline


def chain(*inputs: Sequence[int], entering: str = "") -> list[PlannedOperation]:
    """Operations by the numbers of their inputs; -1 stands for a tensor from another stage."""
    return [
        PlannedOperation(
            name=f"op{i}",
            kind="module",
            target=f"part{i}",
            module=f"part{i}",
            module_class=f"Kind{i}",
            inputs=tuple(f"op{j}" if j >= 0 else entering for j in used),
            shape=("B", 8),
        )
        for i, used in enumerate(inputs)
    ]


def test_neighbours_need_no_lane() -> None:
    assert lanes(outline(chain([], [0], [1]))).count == 0


def test_edges_that_pass_one_another_have_lanes_of_their_own() -> None:
    used = lanes(outline(chain([], [0], [0, 1], [1, 2], [3])))
    assert sorted(used.of_row) == [0, 1]
    assert used.of_row[0] != used.of_row[1]
    assert used.count == 2


def test_edges_one_after_the_other_share_a_lane() -> None:
    used = lanes(outline(chain([], [0], [0, 1], [2], [2, 3])))
    assert used.of_row == {0: 0, 2: 0}
    assert used.count == 1


def test_all_edges_from_one_row_share_a_lane() -> None:
    assert lanes(outline(chain([], [0], [0], [0], [0]))).count == 1


def test_short_edges_are_nearest_to_the_rows() -> None:
    used = lanes(outline(chain([], [0], [1], [1], [0])))
    assert used.of_row[1] < used.of_row[0]


def test_a_tensor_from_the_left_that_is_used_late_has_a_lane() -> None:
    items = outline(chain([-1], [0], [1, -1], entering="x"))
    assert lanes(items).count == 0
    assert lanes(items, frozenset({"x"})).of_row == {-1: 0}


def test_there_are_at_most_so_many_lanes() -> None:
    count = MOST_LANES + 4
    inputs = [[i - 1] if i else [] for i in range(count)]
    inputs += [[count - 1]] + [[i] for i in range(count - 2)]
    used = lanes(outline(chain(*inputs), limit=40))
    assert used.count == MOST_LANES


def test_edges_run_in_their_lanes() -> None:
    items = outline(chain([], [0], [0, 1], [1, 2]))
    used = lanes(items)
    edges = column(items, "stage0", Rectangle(50, 0, 100, 0), used).edges
    bent = [edge for edge in edges if len(edge.points) == 4]
    assert {edge.points[1][0] for edge in bent} == {lane_left(50, 0), lane_left(50, 1)}
    assert all(edge.points[-1][0] == 50 for edge in bent)
