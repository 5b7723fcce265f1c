"""How samples become what the model takes, and what the first stage takes of it."""

from __future__ import annotations

from collections import UserDict, namedtuple
from typing import Any

import pytest
import torch
from torch import nn

from dnic.errors import RuntimeFault
from dnic.runtime.batches import Batches
from dnic.runtime.inputs import Inputs, invoke, moved
from dnic.runtime.plan import InputSpec, SamplePlan

IDS, MASK, LABELS = torch.arange(6).view(2, 3), torch.ones(2, 3), torch.tensor([4, 5])
WORDS = SamplePlan(
    inputs=(
        InputSpec("input_ids", ("input_ids",), ("B", 3), "int64"),
        InputSpec("mask", ("mask",), ("B", 3)),
    ),
    constants=((("use_cache",), False),),
    target="labels",
)
TWO = SamplePlan(inputs=(InputSpec("x", (0,)), InputSpec("y", (1,))))
NESTED = SamplePlan(inputs=(InputSpec("left", (0, "a", 0)), InputSpec("right", (0, "b"))))


class Recorder(nn.Module):
    """Returns what it was called with."""

    def forward(self, *args: Any, **keywords: Any) -> Any:
        return args, keywords


def same(found: list[torch.Tensor], *expected: torch.Tensor) -> bool:
    return len(found) == len(expected) and all(map(torch.equal, found, expected))


def test_a_mapping_sample_gives_what_the_model_takes_and_the_target() -> None:
    sample = UserDict({"labels": LABELS, "mask": MASK, "input_ids": IDS, "index": torch.ones(2)})
    batch, target = Inputs(WORDS).split(sample)
    assert list(batch) == ["mask", "input_ids"]
    assert target is LABELS
    assert same(Inputs(WORDS).take(batch, 2), IDS, MASK)


def test_the_target_may_also_be_an_input() -> None:
    spec = InputSpec("labels", ("labels",))
    plan = SamplePlan(inputs=(*(WORDS.inputs or ()), spec), target="labels")
    batch, target = Inputs(plan).split({"input_ids": IDS, "mask": MASK, "labels": LABELS})
    assert batch["labels"] is target is LABELS


def test_without_targets_they_are_empty_and_of_the_batch_size() -> None:
    plan = SamplePlan(inputs=WORDS.inputs)
    _, target = Inputs(plan).split({"input_ids": IDS, "mask": MASK})
    assert target.shape == (2, 0)
    assert target.dtype == torch.float32


@pytest.mark.parametrize(
    ("plan", "sample", "expected"),
    [
        (TWO, ([IDS, MASK], LABELS), (IDS, MASK)),
        (WORDS, ({"mask": MASK, "input_ids": IDS}, LABELS), (IDS, MASK)),
        (NESTED, ({"b": MASK, "a": [IDS]}, LABELS), (IDS, MASK)),
        (NESTED, (({"b": MASK, "a": [IDS]},), LABELS), (IDS, MASK)),
        (SamplePlan(), (IDS, LABELS), (IDS,)),
        (SamplePlan(), ((IDS, MASK), LABELS), (IDS, MASK)),
    ],
    ids=["tuple", "keywords", "one mapping", "mapping in a tuple", "old plan", "old, several"],
)
def test_pairs(plan: SamplePlan, sample: Any, expected: tuple[torch.Tensor, ...]) -> None:
    batch, target = Inputs(plan).split(sample)
    assert target is LABELS
    assert same(Inputs(plan).take(batch, 2), *expected)


def test_one_mapping_as_the_whole_sample_stays_one_argument() -> None:
    sample = {"b": MASK, "a": [IDS], "labels": LABELS}
    plan = SamplePlan(inputs=NESTED.inputs, target="labels")
    batch, target = Inputs(plan).split(sample)
    assert target is LABELS
    assert len(batch) == 1
    assert list(batch[0]) == ["b", "a"]


def test_the_undivided_model_is_called_with_all_of_it() -> None:
    device = torch.device("cpu")
    args, keywords = Inputs(WORDS).call(Recorder(), {"input_ids": IDS, "mask": MASK}, device)
    assert args == ()
    assert keywords == {"use_cache": False, "input_ids": IDS, "mask": MASK}
    plan = SamplePlan(inputs=TWO.inputs, constants=(((3,), "tanh"), ((2,), None)))
    args, keywords = Inputs(plan).call(Recorder(), (IDS, MASK), device)
    assert args == (IDS, MASK, None, "tanh")
    assert invoke(Recorder(), {"use_cache": True}, WORDS.constants) == ((), {"use_cache": True})


def test_every_tensor_of_a_nested_batch_moves() -> None:
    pair = namedtuple("pair", "a b")  # as users write it
    batch = moved(UserDict({"x": pair(IDS, [MASK, (LABELS, "tanh")])}), torch.device("meta"))
    found = batch["x"]
    assert isinstance(found, pair)
    assert found.a.is_meta
    assert found.b[0].is_meta
    assert found.b[1][0].is_meta
    assert found.b[1][1] == "tanh"


@pytest.mark.parametrize(
    ("plan", "sample", "problem"),
    [
        (WORDS, {"input_ids": IDS, "labels": LABELS}, "a batch has no mask"),
        (WORDS, {"input_ids": IDS, "mask": MASK}, "a sample has no 'labels'"),
        (WORDS, {"input_ids": IDS, "mask": MASK, "labels": 3}, "are int, not a tensor"),
        (WORDS, ({"input_ids": IDS}, LABELS), "a batch has no mask"),
        (WORDS, ({"input_ids": IDS, "mask": MASK, "more": IDS}, LABELS), "an entry more: more"),
        (
            WORDS,
            {"input_ids": IDS, "mask": ["a", "b"], "labels": LABELS},
            "mask of a batch is list",
        ),
        (WORDS, {"input_ids": IDS.int(), "mask": MASK, "labels": LABELS}, "input_ids .* is int32"),
        (WORDS, {"input_ids": IDS, "mask": MASK[:, 1:], "labels": LABELS}, r"the shape \[2, 2\]"),
        (WORDS, {"input_ids": IDS, "mask": MASK[:1], "labels": LABELS}, r"the shape \[1, 3\]"),
        (WORDS, (IDS, LABELS), "an entry more: input 0"),
        (TWO, (IDS, LABELS), "a batch has no input 1"),
        (TWO, ((IDS, MASK, MASK), LABELS), "an entry more: input 2"),
        (TWO, {"x": IDS, "y": MASK}, "input 0 of a batch is dict"),
        (NESTED, ({"b": MASK, "a": []}, LABELS), r"a batch has no input 0\['a'\]\[0\]"),
        (SamplePlan(), {"x": IDS}, "plan.yaml has no names"),
        (SamplePlan(), ({"x": IDS}, LABELS), "plan.yaml has no names"),
        (WORDS, "abc", "not a pair"),
    ],
)
def test_what_does_not_fit_is_named(plan: SamplePlan, sample: Any, problem: str) -> None:
    with pytest.raises(RuntimeFault, match=problem):
        batch, _ = Inputs(plan).split(sample)
        Inputs(plan).take(batch, 2)


def test_batches_of_mappings() -> None:
    class Words(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 5

        def __getitem__(self, index: int) -> Any:
            return {"input_ids": IDS[0], "mask": MASK[0], "labels": index, "text": "word"}

    data = Batches(Words(), 2, shuffle=False, seed=0, loader_options={}, samples=WORDS)
    found = list(data.epoch(1))
    assert [target.tolist() for _, target in found] == [[0, 1], [2, 3], [4]]
    assert same(Inputs(WORDS).take(found[2][0], 1), IDS[:1], MASK[:1])
