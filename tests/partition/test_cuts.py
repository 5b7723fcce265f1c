"""Cut points of small graphs: which gaps, their names, and what a spec's names mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from dnic.errors import PartitionError, SpecError
from dnic.graph.graph import INSIDE_A_CALL, Graph, Operation, Weight
from dnic.partition import cut_points, resolve_cuts, resolve_groups

Make = Callable[..., Operation]
Build = Callable[..., Graph]
WHERE = "partition.cuts"


def block(operation: Make, path: str, source: str) -> list[Operation]:
    """A residual block: two linear layers, a function between them, and the sum."""
    stem = path.replace(".", "_")
    first = operation(f"{stem}_fc1", (source,), module=f"{path}.fc1", parameters=(f"{path}.fc1.w",))
    act = operation(f"{stem}_relu", (first.name,), kind="function", module=path)
    second = operation(
        f"{stem}_fc2", (act.name,), module=f"{path}.fc2", parameters=(f"{path}.fc2.w",)
    )
    total = operation(f"{stem}_add", (source, second.name), kind="function", module=path)
    return [first, act, second, total]


@pytest.fixture
def residual(operation: Make, graph_of: Build) -> Graph:
    x = operation("x", kind="input", differentiable=False)
    embed = operation("embed", ("x",), parameters=("embed.w",))
    first = block(operation, "layers.0", "embed")
    second = block(operation, "layers.1", first[-1].name)
    head = operation("head", (second[-1].name,), parameters=("head.w",))
    output = operation("output", ("head",), kind="output", shape=None)
    return graph_of([x, embed, *first, *second, head, output])


def test_every_gap_is_a_point_or_has_a_reason(residual: Graph) -> None:
    table = cut_points(residual)
    assert sorted([*table.points, *table.refused]) == list(range(1, len(residual.operations)))
    assert sorted(table.points) == list(range(2, 11))
    assert table.refused == {
        1: "x computes nothing from the inputs: no cut lies right after it",
        11: "nothing is computed after it",
    }


def test_names_tensors_and_how_deep_a_cut_falls(residual: Graph) -> None:
    points = cut_points(residual).points
    found = [(p.after, [v.name for v in p.tensors], p.opened) for p in points.values()]
    assert found == [
        ("embed", ["embed"], 0),
        ("layers.0.fc1", ["embed", "layers_0_fc1"], 2),
        ("layers_0_relu", ["embed", "layers_0_relu"], 2),
        ("layers.0.fc2", ["embed", "layers_0_fc2"], 2),
        ("layers.0", ["layers_0_add"], 1),
        ("layers.1.fc1", ["layers_0_add", "layers_1_fc1"], 2),
        ("layers_1_relu", ["layers_0_add", "layers_1_relu"], 2),
        ("layers.1.fc2", ["layers_0_add", "layers_1_fc2"], 2),
        ("layers", ["layers_1_add"], 0),
    ]


def test_a_cut_in_the_models_own_forward_opens_no_module(operation: Make, graph_of: Build) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("relu", ("x",), kind="function"),
            operation("mul", ("relu",), kind="function"),
            operation("fc", ("mul",)),
            operation("output", ("fc",), kind="output", shape=None),
        ]
    )
    assert [point.opened for point in cut_points(graph).points.values()] == [0, 0]


def test_names_lead_back_to_their_gaps(
    residual: Graph, random_graph: Callable[[int, int], Graph]
) -> None:
    for graph in (residual, *(random_graph(seed, 8) for seed in range(20))):
        table = cut_points(graph)
        for gap, point in table.points.items():
            assert table.gap_after(point.after, WHERE) == gap
            assert resolve_cuts(table, [point.after], WHERE) == (gap,)
            assert point.tensors == tuple(
                op.value for op in graph.crossing(gap) if op.kind != "attribute"
            )


def test_a_module_path_and_an_operation_name_the_same_gap(residual: Graph) -> None:
    table = cut_points(residual)
    assert resolve_cuts(table, ["layers.0"], WHERE) == (6,)
    assert resolve_cuts(table, ["layers_0_add"], WHERE) == (6,)
    assert resolve_cuts(table, ["layers.0.fc1", "layers.1"], WHERE) == (3, 10)


def test_a_module_that_ran_twice_is_named_by_its_operations(
    operation: Make, graph_of: Build
) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("fc1", ("x",)),
            operation("relu", ("fc1",), module="relu"),
            operation("fc2", ("relu",)),
            operation("relu_1", ("fc2",), module="relu"),
            operation("fc3", ("relu_1",)),
            operation("output", ("fc3",), kind="output", shape=None),
        ]
    )
    table = cut_points(graph)
    assert [point.after for point in table.points.values()] == ["fc1", "relu", "fc2", "relu_1"]
    assert [table.gap_after(p.after, WHERE) for p in table.points.values()] == list(table.points)


def test_tied_parameters_on_both_sides_are_shared(operation: Make, graph_of: Build) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("first", ("x",), parameters=("first.w",)),
            operation("embed", ("first",), parameters=("embed.w",), parameter_bytes=800),
            operation("middle", ("embed",), parameters=("middle.w",)),
            operation("w", kind="attribute", module="embed", parameters=("embed.w",)),
            operation("linear", ("middle", "w"), kind="function"),
            operation("last", ("linear",), parameters=("last.w",)),
            operation("output", ("last",), kind="output", shape=None),
        ],
        weights={"embed.w": Weight("embed.w", ("linear.w",), 800, trained=True)},
    )
    points = cut_points(graph).points
    assert {gap: (point.shared, point.shared_nbytes) for gap, point in points.items()} == {
        2: ((), 0),
        3: (("embed.w",), 800),
        4: (("embed.w",), 800),
        6: ((), 0),
    }


def test_the_parameters_of_a_module_called_twice_are_shared(
    operation: Make, graph_of: Build
) -> None:
    def shared(trained: bool) -> list[tuple[str, ...]]:
        graph = graph_of(
            [
                operation("x", kind="input", differentiable=False),
                operation("first", ("x",), parameters=("first.w",)),
                operation("again", ("first",), module="again", parameters=("again.w",)),
                operation("between", ("again",), parameters=("between.w",)),
                operation("again_1", ("between",), module="again", parameters=("again.w",)),
                operation("last", ("again_1",), parameters=("last.w",)),
                operation("output", ("last",), kind="output", shape=None),
            ],
            weights={"again.w": Weight("again.w", (), 8, trained=trained)},
        )
        return [point.shared for point in cut_points(graph).points.values()]

    assert shared(trained=True) == [(), ("again.w",), ("again.w",), ()]
    assert shared(trained=False) == [(), (), (), ()], "what never changes needs no owner"


def test_a_fetched_buffer_crosses_nothing(operation: Make, graph_of: Build) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("table", kind="attribute", module="", differentiable=False),
            operation("a", ("x", "table")),
            operation("b", ("a", "table")),
            operation("output", ("b",), kind="output", shape=None),
        ]
    )
    point = cut_points(graph).points[3]
    assert [value.name for value in point.tensors] == ["a"]


def test_what_is_no_tensor_and_what_the_capture_forbade(operation: Make, graph_of: Build) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("a", ("x",)),
            operation("chunks", ("a",), kind="function", shape=None),
            operation("b", ("chunks",)),
            operation("c", ("b",)),
            operation("output", ("c",), kind="output", shape=None),
        ],
        {4: "c changes b in place"},
    )
    table = cut_points(graph)
    assert list(table.points) == [2]
    assert table.refused[3] == "chunks crosses it and is not a tensor"
    assert table.refused[4] == "c changes b in place"
    with pytest.raises(PartitionError, match="after b: c changes b in place") as caught:
        resolve_cuts(table, ["b"], WHERE)
    assert caught.value.hint == "a, the nearest place for a cut"


def test_a_gap_behind_a_result_that_nobody_uses(operation: Make, graph_of: Build) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("unused", ("x",)),
            operation("table", kind="attribute", module="", differentiable=False),
            operation("constant", ("table",)),
            operation("output", ("constant",), kind="output", shape=None),
        ]
    )
    assert cut_points(graph).refused[2] == "nobody uses its result"


def test_a_module_that_does_not_exist(residual: Graph) -> None:
    with pytest.raises(SpecError, match=r"no module or operation 'layer\.1'") as caught:
        resolve_cuts(cut_points(residual), ["embed", "layer.1"], WHERE)
    assert caught.value.where == "partition.cuts[1]"
    assert (caught.value.hint or "").startswith("the nearest: layers.1,")
    with pytest.raises(SpecError) as caught:
        resolve_cuts(cut_points(residual), ["zzzz"], WHERE)
    assert caught.value.hint == "for example embed"


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["layers.1", "layers.0"], "the cut after layers.0 lies before the cut after layers.1"),
        (["layers.0", "layers_0_add"], "the cut after layers_0_add is the same as"),
        (["head"], "cannot be cut after head: nothing is computed after it"),
    ],
)
def test_cuts_that_cannot_be(residual: Graph, names: list[str], message: str) -> None:
    with pytest.raises(PartitionError, match=message):
        resolve_cuts(cut_points(residual), names, WHERE)


def test_groups_span_all_their_modules(residual: Graph) -> None:
    groups = resolve_groups(residual, [["layers.0"], ["embed", "layers.1.fc1"], ["head"]], "k")
    assert groups == ((2, 6), (1, 7), (10, 11))
    with pytest.raises(SpecError, match="'encoder'") as caught:
        resolve_groups(residual, [["embed"], ["encoder"]], "partition.keep_together")
    assert caught.value.where == "partition.keep_together[1]"


def test_a_prefix_is_a_whole_part_of_a_path(operation: Make, graph_of: Build) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("layers_1", ("x",), module="layers.1"),
            operation("layers_10", ("layers_1",), module="layers.10"),
            operation("output", ("layers_10",), kind="output", shape=None),
        ]
    )
    assert resolve_groups(graph, [["layers.1"]], "k") == ((1, 2),)
    assert cut_points(graph).points[2].after == "layers.1"


def test_after_a_call_is_after_the_items_of_its_result(operation: Make, graph_of: Build) -> None:
    graph = graph_of(
        [
            operation("x", kind="input", differentiable=False),
            operation("rnn", ("x",), shape=None),
            operation("hidden", ("rnn",), kind="function", module="rnn"),
            operation("last", ("hidden",)),
            operation("output", ("last",), kind="output", shape=None),
        ],
        {2: INSIDE_A_CALL},
    )
    table = cut_points(graph)
    assert resolve_cuts(table, ["rnn"], WHERE) == (3,)
    assert resolve_cuts(table, [table.points[3].after], WHERE) == (3,)
