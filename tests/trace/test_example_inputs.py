"""What a batch may be: tuples and mappings, nested, with constants; names, paths, copies."""

from __future__ import annotations

from collections import UserDict
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dnic.errors import TraceError
from dnic.trace import BatchSize, capture_coarse, capture_fine, fresh, grown, recorded, to_meta
from dnic.trace.inputs import batch_size_of, constants_of, input_names


class Reader(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 4)
        self.head = nn.Linear(4, 10)

    def forward(
        self,
        input_ids: Tensor,
        mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        scale: float = 1.0,
        **rest: object,
    ) -> Tensor:
        hidden = self.embed(input_ids) * scale
        if mask is not None:
            hidden = hidden * mask[..., None]
        logits = self.head(hidden)
        return logits if labels is None else logits.flatten(0, 1)[labels.flatten()].mean()


def ids() -> Tensor:
    return torch.arange(6).view(2, 3)


def test_keyword_inputs_keep_their_names_and_paths() -> None:
    inputs = {"input_ids": ids(), "mask": torch.ones(2, 3), "scale": 2.0, "labels": None}
    traced = capture_fine(Reader(), inputs)
    assert traced.inputs == (("input_ids", ("input_ids",)), ("mask", ("mask",)))
    assert traced.constants == ((("scale",), 2.0), (("labels",), None))
    assert [n.name for n in traced.graph.nodes if n.op == "placeholder"] == ["input_ids", "mask"]
    scaled = next(n for n in traced.graph.nodes if n.args[1:] == (2.0,))
    assert scaled.args[0].name == "embed", "a constant is part of what was recorded"
    coarse = capture_coarse(traced, inputs, ())
    assert (coarse.inputs, coarse.constants) == (traced.inputs, traced.constants)


def test_the_order_is_that_of_the_batch_not_of_the_signature() -> None:
    traced = capture_fine(Reader(), {"mask": torch.ones(2, 3), "input_ids": ids()})
    assert [name for name, _ in traced.inputs] == ["mask", "input_ids"]


def test_positional_inputs_are_called_as_in_the_signature_and_none_is_a_constant() -> None:
    traced = capture_fine(Reader(), (ids(), None, ids()))
    assert traced.inputs == (("input_ids", (0,)), ("labels", (2,)))
    assert traced.constants == (((1,), None),)


def test_one_tensor_given_twice_is_two_inputs() -> None:
    tokens = ids()
    traced = capture_fine(Reader(), {"input_ids": tokens, "labels": tokens})
    embed = next(n for n in traced.graph.nodes if n.target == "embed")
    flat = [n for n in traced.graph.nodes if n.op == "call_method" and n.target == "flatten"]
    assert embed.args[0].name == "input_ids"
    assert [n.args[0].name for n in flat] == ["head", "labels"]


def test_mappings_that_are_no_dictionaries() -> None:
    class BatchEncoding(UserDict[str, Tensor]):
        """As a tokenizer returns them."""

    class Nested(nn.Module):
        def forward(self, batch: dict[str, Tensor]) -> Tensor:
            return batch["pixels"] * batch["gain"][:, None]

    given = BatchEncoding(pixels=torch.ones(3, 2), gain=torch.ones(3))
    traced = capture_fine(Nested(), (given,))
    assert traced.inputs == (
        ("batch_pixels", (0, "pixels")),
        ("batch_gain", (0, "gain")),
    )
    assert traced.batch_size == 3


def test_nested_inputs_are_named_by_their_path() -> None:
    class Nested(nn.Module):
        def forward(self, image: dict[str, object], sizes: list[Tensor]) -> Tensor:
            left, right = image["pair"]
            return left * right + sizes[0] + sizes[1] + image["class"]

    one = torch.ones(3, 2)
    traced = capture_fine(
        Nested(), ({"pair": (one, one.clone()), "class": one.clone()}, [one.clone(), one.clone()])
    )
    assert [name for name, _ in traced.inputs] == [
        "image_pair_0",
        "image_pair_1",
        "image_class",
        "sizes_0",
        "sizes_1",
    ]
    assert traced.inputs[1][1] == (0, "pair", 1)


def test_names_are_identifiers_and_differ() -> None:
    class Any_(nn.Module):  # noqa: N801 (as short as can be)
        def forward(self, *parts: Tensor, **named: Tensor) -> Tensor:
            return torch.stack([*parts, *named.values()]).sum(0)

    one = torch.ones(2, 2)
    assert [n for n, _ in input_names(Any_(), (one, one))] == ["parts_0", "parts_1"]
    odd = {"a b": one, "a-b": one, "class": one, "3": one}
    assert [n for n, _ in input_names(Any_(), odd)] == ["a_b", "a_b_", "_class", "_3"]


def test_inputs_that_the_model_does_not_take() -> None:
    class Strict(nn.Module):
        def forward(self, tokens: Tensor) -> Tensor:
            return tokens + 1

    with pytest.raises(
        TraceError, match=r"gives 'labels', which Strict\.forward does not"
    ) as caught:
        capture_fine(Strict(), {"tokens": ids(), "labels": ids()})
    assert caught.value.expected == "keywords among tokens"
    with pytest.raises(TraceError, match="no tensor with a batch axis"):
        capture_fine(Strict(), (torch.tensor(3.0),))


def test_the_batch_is_the_first_axis_of_the_first_tensor_that_has_one() -> None:
    inputs = {"scale": torch.tensor(2.0), "x": torch.ones(5, 2), "table": torch.ones(7, 2)}
    assert batch_size_of(inputs) == 5
    larger = grown(inputs, 5, by=2)
    assert {k: tuple(v.shape) for k, v in larger.items()} == {
        "scale": (),
        "x": (7, 2),
        "table": (7, 2),
    }
    assert torch.equal(larger["x"][5:], inputs["x"][:1].expand(2, 2))


class Pair(NamedTuple):
    left: Tensor
    right: tuple[Tensor, float]


def test_copies_keep_the_structure_and_own_their_tensors() -> None:
    one = torch.ones(2)
    given = {"pair": Pair(one, (one, 0.5)), "flag": True}
    copy = fresh(given)
    assert type(copy["pair"]) is Pair and copy["pair"].right[1] == 0.5 and copy["flag"] is True
    assert copy["pair"].left is not copy["pair"].right[0]
    copy["pair"].left.zero_()
    assert torch.equal(one, torch.ones(2))
    assert to_meta(given)["pair"].right[0].is_meta


def test_only_arguments_themselves_are_constants() -> None:
    inputs = (torch.ones(2), 3, {"inner": 4}, "mean")
    assert constants_of(inputs) == (((1,), 3), ((3,), "mean"))


def test_integer_and_boolean_tensors_carry_no_gradient() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(9, 4)

        def forward(self, tokens: Tensor, keep: Tensor) -> Tensor:
            return self.embed(tokens).masked_fill(~keep[..., None], 0.0)

    traced = capture_fine(Masked(), (ids(), torch.ones(2, 3, dtype=torch.bool)))
    flows = {n.name: f.requires_grad for n in traced.graph.nodes if (f := recorded(n).tensor)}
    assert flows["keep"] is False and flows["embed"] is True
    assert traced.shapes["keep"] == ("B", 3)


def test_a_model_on_the_meta_device_is_captured_like_any_other() -> None:
    with torch.device("meta"):
        model = Reader()
    inputs = {"input_ids": ids(), "mask": torch.ones(2, 3)}
    traced = capture_fine(model, to_meta(inputs))
    real = capture_fine(Reader(), inputs)
    assert [n.format_node() for n in traced.graph.nodes] == [
        n.format_node() for n in real.graph.nodes
    ]
    assert traced.shapes == real.shapes
    flops = [sum(recorded(n).flops for n in t.graph.nodes) for t in (traced, real)]
    assert flops[0] == flops[1] > 0
    assert all(p.is_meta for p in model.parameters())


def test_on_the_meta_device_there_are_no_values_to_check() -> None:
    class Checks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.sum() < 0:  # here
                raise ValueError("never")
            return x + 1

    assert capture_fine(Checks(), (torch.ones(2, 2),)).checks
    with pytest.raises(TraceError, match="a branch on the value of a tensor") as caught:
        capture_fine(Checks(), (torch.ones(2, 2, device="meta"),))
    file, _, line = (caught.value.where or "").rpartition(":")
    assert Path(file).read_text().splitlines()[int(line) - 1].endswith("# here")


def test_sizes_from_a_batch_inside_a_mapping() -> None:
    class View(nn.Module):
        def forward(self, *, x: Tensor) -> Tensor:
            return x.view(x.shape[0] * 3, 2)

    traced = capture_fine(View(), {"x": torch.ones(2, 6)})
    (view,) = [n for n in traced.graph.nodes if n.op == "call_method"]
    assert isinstance(view.args[1], BatchSize) and view.args[1].multiple == 3
