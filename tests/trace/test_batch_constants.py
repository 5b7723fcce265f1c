"""Constants that follow the batch: `c * B`, `c * B + d`, `c / B`; and those that are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnic.errors import TraceError
from dnic.trace import BatchShare, BatchSize, capture_fine

Written = Callable[..., nn.Module]


def constant(run: Callable[..., Any], written: Written, batch: int = 3) -> Any:
    """The argument of the only function or method with one, as captured."""
    traced = capture_fine(written(run), (torch.ones(batch, 4),))
    (found,) = [
        a for n in traced.graph.nodes for a in n.args if isinstance(a, int | float | BatchSize)
    ]
    return found


@pytest.mark.parametrize(
    ("run", "multiple", "more", "text"),
    [
        (lambda _, x: x.sum() * x.shape[0], 1, 0, "1*B"),
        (lambda _, x: x.sum() * x.numel(), 4, 0, "4*B"),
        (lambda _, x: x.sum() * (x.shape[0] + 1), 1, 1, "1*B+1"),
        (lambda _, x: x.sum() * (x.shape[0] - 1), 1, -1, "1*B-1"),
        (lambda _, x: x.sum() * (3 * x.shape[0] + 2), 3, 2, "3*B+2"),
    ],
)
def test_sizes(
    run: Callable[..., Any], multiple: int, more: int, text: str, written: Written
) -> None:
    found = constant(run, written)
    assert isinstance(found, BatchSize)
    assert (found.multiple, found.more, repr(found)) == (multiple, more, text)
    assert int(found) == 3 * multiple + more


@pytest.mark.parametrize(
    ("run", "whole"),
    [
        (lambda _, x: x.sum() * (1 / x.shape[0]), 1.0),
        (lambda _, x: x.sum() * (2.5 / x.shape[0]), 2.5),
    ],
)
def test_shares(run: Callable[..., Any], whole: float, written: Written) -> None:
    found = constant(run, written)
    assert isinstance(found, BatchShare)
    assert found.whole == pytest.approx(whole)
    assert float(found) == pytest.approx(whole / 3)


@pytest.mark.parametrize(
    "run",
    [
        lambda _, x: x.sum() * x.shape[1],
        lambda _, x: x.sum() * 3,
        lambda _, x: x.sum() * 0.25,
    ],
)
def test_what_does_not_follow_the_batch(run: Callable[..., Any], written: Written) -> None:
    assert type(constant(run, written)) in (int, float)


@pytest.mark.parametrize(
    "run",
    [
        lambda _, x: x.sum() * x.shape[0] ** 2,
        lambda _, x: x.sum() * (x.shape[0] + 50),
        lambda _, x: x.sum() * (-x.shape[0]),
        lambda _, x: x.sum() * x.shape[0] ** 0.5,
        lambda _, x: x.sum() * (x.shape[0] % 2),
    ],
)
def test_other_lines_and_curves_are_refused(run: Callable[..., Any], written: Written) -> None:
    with pytest.raises(TraceError, match="with one more sample") as caught:
        capture_fine(written(run), (torch.ones(3, 4),))
    assert "test_batch_constants.py" in (caught.value.where or "")


def test_in_a_submodule_they_keep_it_whole(written: Written) -> None:
    square = written(lambda _, x: x * x.shape[0] ** 2)
    traced = capture_fine(nn.Sequential(nn.Linear(4, 4), square), (torch.ones(3, 4),))
    assert list(traced.whole) == ["1"]


def test_they_are_found_inside_slices_and_nested_arguments(written: Written) -> None:
    def run(_: Any, x: Tensor) -> Tensor:
        table = torch.zeros((x.shape[0] + 1, 4))
        return table[1 : x.shape[0] + 1] + x[: x.size(0)]

    traced = capture_fine(written(run), (torch.ones(3, 4),))
    by_name = {node.name: node for node in traced.graph.nodes}
    assert repr(by_name["table"].args[0][0]) == "1*B+1"
    assert repr(by_name["getitem"].args[1].stop) == "1*B+1"
    assert repr(by_name["getitem_1"].args[1].stop) == "1*B"
    assert "table" not in traced.shapes, "a token more than the batch cannot be sent"
    assert traced.shapes["getitem"] == ("B", 4)
