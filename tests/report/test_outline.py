"""What a picture shows of a stage: frames, repeats, and nothing lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dnic.partition.plan import PlannedOperation
from dnic.report.outline import Frame, Item, Row, outline, row_count, rows


def module(path: str, kind: str, *inputs: str, parameters: int = 0) -> PlannedOperation:
    return PlannedOperation(
        name=path.replace(".", "_"),
        kind="module",
        target=path,
        module=path,
        module_class=kind,
        inputs=inputs,
        shape=("B", 8),
        parameters=parameters,
    )


def call(name: str, inside: str, kind: str, *inputs: str, sizes: bool = False) -> PlannedOperation:
    return PlannedOperation(
        name=name,
        kind="function",
        target=f"operator.{name.rpartition('_')[2]}",
        module=inside,
        module_class=kind,
        inputs=inputs,
        shape=None if sizes else ("B", 8),
    )


def block(path: str) -> list[PlannedOperation]:
    return [
        module(f"{path}.conv", "Conv2d", parameters=9),
        module(f"{path}.norm", "BatchNorm2d", parameters=2),
        call(f"{path}_add".replace(".", "_"), path, "Block"),
    ]


def chain(length: int, kind: str = "Linear") -> list[PlannedOperation]:
    return [module(f"net.{i}", kind, parameters=5) for i in range(length)]


def sketch(items: Sequence[Item]) -> list[object]:
    """Labels, with counts, as nested lists."""
    return [
        (item.label if item.count == 1 else f"{item.count}x {item.label}")
        if isinstance(item, Row)
        else [item.label, item.count, *sketch(item.items)]
        for item in items
    ]


def test_numbered_layers_need_no_frame() -> None:
    assert sketch(outline(chain(3))) == ["net.0", "net.1", "net.2"]


def test_a_block_is_framed_and_its_rows_lose_its_path() -> None:
    items = outline([module("stem", "Conv2d"), *block("blocks.0"), *block("blocks.1")])
    assert sketch(items) == [
        "stem",
        ["blocks.0", 1, "conv", "norm", "add"],
        ["blocks.1", 1, "conv", "norm", "add"],
    ]
    assert isinstance(items[1], Frame)
    assert items[1].detail == "Block"


def test_a_module_that_holds_the_whole_stage_is_not_framed() -> None:
    assert sketch(outline(block("blocks.0"))) == ["blocks.0.conv", "blocks.0.norm", "add"]


def test_a_module_inside_a_module_is_framed_inside() -> None:
    operations = [
        module("stem", "Conv2d"),
        module("body.first", "Conv2d"),
        *block("body.inner"),
        module("body.last", "Conv2d"),
    ]
    assert sketch(outline(operations)) == [
        "stem",
        ["body", 1, "first", ["inner", 1, "conv", "norm", "add"], "last"],
    ]


def test_a_module_entered_twice_has_two_frames() -> None:
    operations = [*block("a"), module("between", "ReLU"), *block("a")]
    assert [item.label for item in outline(operations)] == ["a", "between", "a"]


def test_up_to_twelve_rows_stay() -> None:
    assert row_count(outline(chain(12))) == 12


def test_a_longer_chain_of_equal_layers_becomes_one_row() -> None:
    items = outline([module("stem", "Conv2d"), *chain(12), module("head", "Linear")])
    assert sketch(items) == ["stem", "12x net.0 … net.11", "head"]
    assert len(items[1].operations if isinstance(items[1], Row) else ()) == 12


def test_layers_of_other_sizes_are_no_repeats() -> None:
    layers = [module(f"net.{i}", "Linear", parameters=i // 7) for i in range(14)]
    assert sketch(outline(layers)) == ["7x net.0 … net.6", "7x net.7 … net.13"]


def test_repeated_blocks_become_one_frame() -> None:
    operations = [module("stem", "Conv2d"), *(op for i in range(6) for op in block(f"blocks.{i}"))]
    (_, frame) = outline(operations)
    assert isinstance(frame, Frame)
    assert (frame.label, frame.count, frame.detail) == ("blocks.0 … blocks.5", 6, "Block")
    assert [len(row.operations) for row in rows([frame])] == [6, 6, 6]


def test_a_repeated_sequence_of_layers_becomes_one_frame() -> None:
    kinds = ["Linear", "BatchNorm1d", "ReLU"]
    layers = [module(f"net.{i}", kinds[i % 3]) for i in range(15)]
    (frame,) = outline(layers)
    assert isinstance(frame, Frame)
    assert (frame.label, frame.count, row_count([frame])) == ("net.0 … net.14", 5, 3)


def test_many_different_blocks_become_rows() -> None:
    operations = [op for i in range(6) for op in block(f"part{i}")]
    unequal = [op.model_copy(update={"parameters": 10 * i}) for i, op in enumerate(operations)]
    items = outline(unequal)
    assert sketch(items) == [f"part{i}" for i in range(6)]
    assert all(isinstance(item, Row) and item.detail == "Block" for item in items)


def test_what_cannot_be_shortened_loses_its_middle() -> None:
    layers = [module(f"part{i}", f"Kind{i}") for i in range(30)]
    items = outline(layers)
    assert row_count(items) == 12
    assert sketch(items)[5] == "… 19 more operations"
    assert sketch(items)[0] == "part0"
    assert sketch(items)[-1] == "part29"


def test_nothing_is_left_out_for_a_few_rows() -> None:
    assert row_count(outline([module(f"part{i}", f"Kind{i}") for i in range(18)])) == 18
    assert row_count(outline([module(f"part{i}", f"Kind{i}") for i in range(19)])) == 12


def test_sizes_are_not_shown_and_their_users_use_their_inputs() -> None:
    operations = [
        module("stem", "Conv2d"),
        call("size", "", "Net", "stem", sizes=True),
        call("floordiv", "", "Net", "size", sizes=True),
        call("view", "", "Net", "stem", "floordiv"),
    ]
    shown = rows(outline(operations))
    assert [row.label for row in shown] == ["stem", "view"]
    assert shown[1].operations[0].inputs == ("stem",)


def test_a_module_that_yields_a_tuple_is_shown() -> None:
    lstm = module("lstm", "LSTM", parameters=99).model_copy(update={"shape": None})
    assert sketch(outline([lstm])) == ["lstm"]


def test_a_parameter_is_shown_by_its_path() -> None:
    parameter = PlannedOperation(
        name="position", kind="attribute", target="embed.position", shape=(4, 8)
    )
    assert sketch(outline([parameter])) == ["embed.position"]


paths = st.lists(
    st.sampled_from(["a", "b", "block", "0", "1", "2", "conv"]), min_size=1, max_size=4
).map(".".join)


@st.composite
def stages(draw: st.DrawFn) -> list[PlannedOperation]:
    operations = []
    for i in range(draw(st.integers(1, 40))):
        path = draw(paths)
        kind = draw(st.sampled_from(["module", "function", "method", "attribute"]))
        operations.append(
            PlannedOperation(
                name=f"op{i}",
                kind=kind,
                target=path if kind in ("module", "attribute") else "torch.add",
                module=path,
                module_class=draw(st.sampled_from(["A", "B"])),
                inputs=tuple(f"op{j}" for j in draw(st.sets(st.integers(0, max(i - 1, 0)))) if i),
                shape=("B", draw(st.integers(1, 2))),
            )
        )
    return operations


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(stages(), st.integers(3, 15))
def test_every_operation_has_one_row_and_rows_are_few(
    operations: list[PlannedOperation], limit: int
) -> None:
    shown = rows(outline(operations, limit))
    names = [op.name for row in shown for op in row.operations]
    assert sorted(names) == sorted(op.name for op in operations)
    assert len(shown) <= limit + limit // 2


@pytest.mark.parametrize("repeats", [2, 7])
def test_blocks_stand_in_the_order_of_execution(repeats: int) -> None:
    operations = [op for i in range(repeats) for op in block(f"blocks.{i}")]
    position = {op.name: i for i, op in enumerate(operations)}
    first = [position[row.operations[0].name] for row in rows(outline(operations))]
    assert first == sorted(first)
