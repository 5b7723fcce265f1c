"""The partition diagram shows all of a plan, tidily, and always the same."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnic.errors import SpecError
from dnic.graph.drawing import Box, Diagram, Edge, Node, Rectangle
from dnic.partition.plan import Plan, PlannedOperation
from dnic.report import draw_plan, ink, partition_diagram

MakePlan = Callable[..., Plan]
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(
    params=[
        ("mlp_plan", (11,), ("synthetic",)),
        ("mlp_plan", (5, 11, 17), ("synthetic", "exact")),
        ("residual_plan", (12,), ("synthetic",)),
        ("residual_plan", (5, 10, 15), ("exact",)),
        ("transformer_plan", (9,), ("synthetic",)),
        ("transformer_plan", (6, 9, 12), ("synthetic",)),
    ],
    ids=lambda p: f"{p[0]}-{len(p[1]) + 1}",
)
def plan(request: pytest.FixtureRequest) -> Plan:
    name, cuts, gradients = request.param
    made: Plan = request.getfixturevalue(name)(*cuts, gradients=gradients)
    return made


def all_boxes(boxes: Iterable[Box]) -> list[Box]:
    return [found for box in boxes for found in (box, *all_boxes(box.boxes))]


def all_nodes(diagram: Diagram) -> list[Node]:
    return [*(n for box in all_boxes(diagram.boxes) for n in box.nodes), *diagram.nodes]


def texts(diagram: Diagram) -> list[str]:
    return [
        node.text.text.replace("\N{NO-BREAK SPACE}", " ")
        for node in all_nodes(diagram)
        if node.text
    ]


def inside(inner: Rectangle, outer: Rectangle) -> bool:
    return (
        outer.left <= inner.left
        and outer.top <= inner.top
        and inner.right <= outer.right + 0.01
        and inner.bottom <= outer.bottom + 0.01
    )


def apart(one: Rectangle, other: Rectangle) -> bool:
    return (
        one.right <= other.left
        or other.right <= one.left
        or one.bottom <= other.top
        or other.bottom <= one.top
    )


def operation_nodes(box: Box) -> list[Node]:
    return [
        node
        for inner in all_boxes([box])
        for node in inner.nodes
        if node.style and "/" in node.name and "behind" not in node.name
    ]


def check_tidy(diagram: Diagram) -> None:
    """Boxes nest, operations lie apart inside their stage, every name is there once."""
    names = [node.name for node in all_nodes(diagram)]
    assert len(set(names)) == len(names)
    for panel in diagram.boxes:
        for box in all_boxes([panel]):
            assert all(inside(inner.place, box.place) for inner in box.boxes)
        operations = operation_nodes(panel)
        assert all(inside(node.place, panel.place) for node in operations)
        assert all(apart(a.place, b.place) for a, b in combinations(operations, 2))
    assert all(apart(a.place, b.place) for a, b in combinations(diagram.boxes, 2))
    for edge in diagram.edges:
        assert {edge.tail, edge.head} <= {*names, *(panel.name for panel in diagram.boxes)}
        straight = all(
            a[0] == b[0] or a[1] == b[1] for a, b in zip(edge.points, edge.points[1:], strict=False)
        )
        assert straight, edge


def edges_between(diagram: Diagram, tail: str, head: str) -> list[Edge]:
    """Edges between operations, whose nodes are called `stage/operation number`."""

    def shows(node: str, operation: str) -> bool:
        return node.rpartition(" ")[0].partition("/")[2] == operation

    return [e for e in diagram.edges if shows(e.tail, tail) and shows(e.head, head)]


def test_pictures_are_tidy(plan: Plan) -> None:
    check_tidy(partition_diagram(plan))


def test_stages_stand_from_left_to_right_on_one_line(plan: Plan) -> None:
    panels = [box.place for box in partition_diagram(plan).boxes]
    assert [box.name for box in partition_diagram(plan).boxes] == [s.name for s in plan.stages]
    assert panels == sorted(panels, key=lambda place: place.left)
    assert len({(place.top, place.width, place.height) for place in panels}) == 1


def test_every_stage_interface_and_module_is_named(plan: Plan, tmp_path: Path) -> None:
    draw_plan(plan, tmp_path / "picture.svg")
    svg = ElementTree.parse(tmp_path / "picture.svg").getroot()
    shown = ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]
    for stage in plan.stages:
        assert stage.name in shown
        assert f"device {stage.device}" in shown
    for interface in plan.interfaces:
        assert any(interface.name in text for text in shown)
    frames = [box.get("id") for box in svg.iter(f"{SVG}g") if box.get("class") == "cluster"]
    assert len(frames) >= len(plan.stages)
    for stage in plan.stages:
        for path in stage.modules:
            labels = [".".join(path.split(".")[i:]) for i in range(path.count(".") + 1)]
            assert any(label in shown for label in labels), path


def test_no_text_is_wider_than_its_place(plan: Plan) -> None:
    for node in all_nodes(partition_diagram(plan)):
        if node.text:
            assert ink.text_width(node.text.text, node.text.size) <= node.place.width


def test_nothing_is_shortened_in_these_plans(plan: Plan) -> None:
    cut_short = [text for text in texts(partition_diagram(plan)) if "…" in text]
    assert [text for text in cut_short if " … " not in text] == []


def test_the_bar_is_the_share_of_time(plan: Plan) -> None:
    nodes = {node.name: node.place for node in all_nodes(partition_diagram(plan))}
    for stage in plan.stages:
        bar, track = nodes[f"{stage.name} time bar"], nodes[f"{stage.name} time track"]
        assert bar.width / track.width == pytest.approx(stage.time_share)
        assert (bar.left, bar.top) == (track.left, track.top)


def test_every_dependency_is_drawn_once(residual_plan: MakePlan) -> None:
    plan = residual_plan(12)
    diagram = partition_diagram(plan)
    # The second stage shows its two equal blocks as one.
    first = {op.name for op in plan.stages[0].operations}
    for op in plan.stages[0].operations:
        for name in op.inputs:
            assert name in first
            assert len(edges_between(diagram, name, op.name)) == 1
    (crossing,) = plan.interfaces[0].tensors
    for user in ("blocks_2_conv1", "blocks_2_add"):
        assert len(edges_between(diagram, crossing.name, user)) == 1


def test_edges_inside_a_stage_run_downwards(plan: Plan) -> None:
    for edge in partition_diagram(plan).edges:
        stages = {edge.tail.partition("/")[0], edge.head.partition("/")[0]}
        if len(stages) == 1 and "/" in edge.tail and "/" in edge.head:
            assert edge.points[0][1] < edge.points[-1][1]


def test_an_edge_to_a_later_row_passes_left_of_all_rows(residual_plan: MakePlan) -> None:
    diagram = partition_diagram(residual_plan(12))
    (skip,) = edges_between(diagram, "stem", "blocks_0_add")
    lefts = [node.place.left for node in operation_nodes(diagram.boxes[0])]
    assert min(x for x, _ in skip.points) < min(lefts)
    assert min(x for x, _ in skip.points) > diagram.boxes[0].place.left


def line_from(edges: Sequence[Edge], style: object) -> list[Edge]:
    return [e for e in edges if e.style == style and not e.tail.startswith("legend")]


def test_a_predicted_gradient_returns_dashed_and_the_true_one_reaches_the_head(
    mlp_plan: MakePlan,
) -> None:
    diagram = partition_diagram(mlp_plan(11))
    left, right = (box.place for box in diagram.boxes)
    head = next(node for node in diagram.nodes if node.shape == "hexagon")
    (predicted,) = line_from(diagram.edges, ink.PREDICTED)
    (true,) = line_from(diagram.edges, ink.TRUE)
    assert (predicted.tail, predicted.head) == (head.name, "stage0")
    assert (true.tail, true.head) == ("stage1", head.name)
    assert predicted.points[-1][0] == left.right
    assert true.points[0][0] == right.left
    assert ink.PREDICTED.dash != ink.TRUE.dash != ink.EXACT.dash
    assert {"ĝ(t)", "g(t−2)", "window 2", "1 hidden layer, rank 64"} <= set(texts(diagram))
    assert "50.4 k params, sees target" in texts(diagram)


def test_an_exact_gradient_goes_all_the_way_without_a_head(mlp_plan: MakePlan) -> None:
    diagram = partition_diagram(mlp_plan(11, gradients=("exact",)))
    (exact,) = line_from(diagram.edges, ink.EXACT)
    left, right = (box.place for box in diagram.boxes)
    assert (exact.points[0][0], exact.points[-1][0]) == (right.left, left.right)
    assert not [node for node in diagram.nodes if node.shape == "hexagon"]
    assert {"exact gradient", "sender waits"} <= set(texts(diagram))


def test_a_late_gradient_says_what_it_begins_with(mlp_plan: MakePlan) -> None:
    plan = mlp_plan(11)
    late = {"gradient": "stale", "warmup": "local"}
    interfaces = tuple(row.model_copy(update=late) for row in plan.interfaces)
    diagram = partition_diagram(plan.model_copy(update={"interfaces": interfaces}))
    check_tidy(diagram)
    assert {"stale gradient", "begins with local", "window 2"} <= set(texts(diagram))
    (true,) = line_from(diagram.edges, ink.TRUE)
    left, right = (box.place for box in diagram.boxes)
    assert (true.points[0][0], true.points[-1][0]) == (right.left, left.right)
    assert not [node for node in diagram.nodes if node.shape == "hexagon"]


def test_the_key_names_only_what_is_there(mlp_plan: MakePlan) -> None:
    def key(plan: Plan) -> list[str]:
        nodes = partition_diagram(plan).nodes
        return [n.text.text for n in nodes if n.name.startswith("legend") and n.text]

    assert key(mlp_plan(11)) == [
        "activation",
        "predicted gradient, used at once",
        "true gradient, later",
    ]
    assert key(mlp_plan(11, gradients=("exact",))) == ["activation", "exact gradient, waited for"]


def test_interfaces_that_skip_a_stage_pass_below(transformer_plan: MakePlan) -> None:
    plan = transformer_plan(6, 9, 12)
    diagram = partition_diagram(plan)
    bottom = diagram.boxes[0].place.bottom
    skipping = [i for i in plan.interfaces if i.to > i.source + 1]
    assert [(i.source, i.to) for i in skipping] == [(0, 2), (0, 3)]
    long_ones = [e for e in diagram.edges if e.tail.startswith("stage0/rotary")]
    (to_second,), (to_third,) = (
        {max(y for _, y in e.points) for e in long_ones if e.head.startswith(stage)}
        for stage in ("stage2", "stage3")
    )
    assert bottom < to_second < to_third
    assert texts(diagram).count("rotary · [64, 32] · 8.00 KiB · no gradient") == 2


def test_a_skipping_interface_with_a_head_returns_below(transformer_plan: MakePlan) -> None:
    plan = transformer_plan(6, 9)
    (skip,) = (i for i in plan.interfaces if i.to == 2 and i.source == 0)
    tensors = tuple(t.model_copy(update={"differentiable": True}) for t in skip.tensors)
    changed = skip.model_copy(update={"tensors": tensors})
    others = tuple(changed if i is skip else i for i in plan.interfaces)
    diagram = partition_diagram(plan.model_copy(update={"interfaces": others}))
    check_tidy(diagram)
    bottom = diagram.boxes[0].place.bottom
    predicted = line_from(diagram.edges, ink.PREDICTED)[-1]
    assert predicted.points[-1][1] == bottom
    assert predicted.points[0][1] > bottom


def test_a_plan_of_one_stage_is_drawn(residual_plan: MakePlan, tmp_path: Path) -> None:
    plan = residual_plan(12)
    alone = plan.model_copy(update={"stages": plan.stages[:1], "interfaces": ()})
    check_tidy(partition_diagram(alone))
    draw_plan(alone, tmp_path / "picture.svg")


def test_names_of_modules_are_escaped(mlp_plan: MakePlan, tmp_path: Path) -> None:
    plan = mlp_plan(11)
    hostile = '<&"\\N:x>'
    stage = plan.stages[0]
    odd = stage.operations[1].model_copy(
        update={"target": hostile, "module": hostile, "module_class": "A<B>&C"}
    )
    operations = (stage.operations[0], odd, *stage.operations[2:])
    stages = (stage.model_copy(update={"operations": operations}), *plan.stages[1:])
    draw_plan(plan.model_copy(update={"stages": stages}), tmp_path / "picture.svg")
    svg = ElementTree.parse(tmp_path / "picture.svg").getroot()
    shown = ["".join(text.itertext()) for text in svg.iter(f"{SVG}text")]
    assert {hostile, "A<B>&C"} <= set(shown)


def test_a_long_name_is_shortened_and_kept_in_the_tooltip(mlp_plan: MakePlan) -> None:
    plan = mlp_plan(11)
    stage, name = plan.stages[0], "encoder_of_the_" * 8 + "end"
    odd = stage.operations[1].model_copy(update={"target": name, "module": name})
    operations = (stage.operations[0], odd, *stage.operations[2:])
    stages = (stage.model_copy(update={"operations": operations}), *plan.stages[1:])
    diagram = partition_diagram(plan.model_copy(update={"stages": stages}))
    check_tidy(diagram)
    (label,) = (n for n in all_nodes(diagram) if n.tooltip == name and n.text)
    assert label.text is not None
    start, gap, end = label.text.text.partition("…")
    assert gap
    assert name.startswith(start)
    assert name.endswith(end)
    assert len(start) > 3
    assert inside(label.place, diagram.boxes[0].place)


def test_an_unknown_suffix_is_refused(mlp_plan: MakePlan, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="gif"):
        draw_plan(mlp_plan(11), tmp_path / "picture.gif")


def test_bytes_do_not_depend_on_hashing(transformer_plan: MakePlan, tmp_path: Path) -> None:
    plan = transformer_plan(6, 9, 12)
    draw_plan(plan, tmp_path / "here.svg")
    (tmp_path / "plan.json").write_text(plan.model_dump_json(by_alias=True))
    program = (
        "from dnic.partition.plan import Plan; from dnic.report import draw_plan\n"
        "draw_plan(Plan.model_validate_json(open('plan.json').read()), 'there.svg')"
    )
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONHASHSEED": other, "PYTHONPATH": os.pathsep.join(sys.path)},
        cwd=tmp_path,
        check=True,
        timeout=120,
    )
    assert (tmp_path / "here.svg").read_bytes() == (tmp_path / "there.svg").read_bytes()


@st.composite
def shuffled(draw: st.DrawFn) -> list[tuple[str, str, list[int]]]:
    """Path, kind and inputs of random operations in execution order."""
    path = st.lists(st.sampled_from(["a", "b", "0", "1"]), min_size=1, max_size=3).map(".".join)
    return [
        (
            draw(path),
            draw(st.sampled_from(["module", "function"])),
            draw(st.lists(st.integers(0, i - 1), max_size=3, unique=True)) if i else [],
        )
        for i in range(draw(st.integers(1, 25)))
    ]


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(graph=shuffled())
def test_any_stage_is_drawn_tidily(
    mlp_plan: MakePlan, graph: list[tuple[str, str, list[int]]]
) -> None:
    operations = tuple(
        PlannedOperation(
            name=f"op{i}",
            kind=kind,
            target=path if kind == "module" else "torch.add",
            module=path,
            module_class=f"Kind{i % 3}",
            inputs=tuple(f"op{j}" for j in inputs),
            shape=("B", 8),
        )
        for i, (path, kind, inputs) in enumerate(graph)
    )
    plan = mlp_plan(11)
    stage = plan.stages[0].model_copy(update={"operations": operations, "modules": ()})
    check_tidy(partition_diagram(plan.model_copy(update={"stages": (stage, plan.stages[1])})))
