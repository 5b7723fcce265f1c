"""Heads where the samples do not lie on axis 0: sequence-first tensors and flattened positions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dnic.cost import TargetSize, head_cost, head_features, load_profile
from dnic.errors import RuntimeFault
from dnic.graph.graph import Value
from dnic.runtime.head_axis import BatchAxis, batch_axis
from dnic.runtime.head_layout import layout_of
from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.heads import HeadSpec, build_head
from dnic.runtime.plan import resolve
from dnic.runtime.record import Record, read_record

BATCH = 6
Shape = tuple[int | str, ...]

SHAPES: dict[Shape, tuple[BatchAxis, tuple[int, ...]]] = {
    ("B", 16): (BatchAxis(), (16,)),
    ("B",): (BatchAxis(), ()),
    (5, "B", 16): (BatchAxis(1), (5, 16)),
    (2, 3, "B"): (BatchAxis(2), (2, 3)),
    ("5*B", 16): (BatchAxis(0, 5), (5, 16)),
    ("5*B",): (BatchAxis(0, 5), (5,)),
    (16, "5*B"): (BatchAxis(1, 5), (5, 16)),
    ("5*B", 3, 16): (BatchAxis(), (3, 16)),
    ("5*B", 3, 8, 8): (BatchAxis(), (3, 8, 8)),
    (3, "5*B", 16): (BatchAxis(1), (3, 16)),
    (1, 8, 16): (BatchAxis(), (8, 16)),
    (): (BatchAxis(), ()),
}


@pytest.mark.parametrize(("shape", "expected"), SHAPES.items(), ids=str)
def test_where_the_samples_lie(shape: Shape, expected: tuple[BatchAxis, tuple[int, ...]]) -> None:
    assert batch_axis(shape) == expected


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_cost_model_reads_the_same(shape: Shape) -> None:
    axis, sample = batch_axis(shape)
    value = Value("h", shape, "float32", 0, True)
    assert head_features(value) == layout_of(sample).features
    profile = load_profile("cpu-core")
    spec, target = HeadSpec(width=8), TargetSize((5,), 3)
    real = build_head(sample, torch.float32, spec, 3, (5,), torch.int64)
    cost = head_cost([value], BATCH, 1, 8, profile, target)
    assert cost.parameters == sum(p.numel() for p in real.parameters())
    rows = axis.to_front(torch.zeros(resolve(shape, BATCH))).shape[0]
    plain = Value("h", ("B", *sample), "float32", 0, True)
    assert cost == head_cost([plain], rows, 1, 8, profile, target)


def test_a_batch_on_several_axes_is_refused() -> None:
    with pytest.raises(RuntimeFault, match=r"\[B, 4, 2\*B\]") as caught:
        batch_axis(("B", 4, "2*B"))
    assert "gradient: exact" in str(caught.value)


def test_rows_that_are_no_whole_samples_are_refused() -> None:
    with pytest.raises(RuntimeFault, match=r"5 rows of each sample .*\[12, 4\]"):
        BatchAxis(0, 5).to_front(torch.zeros(12, 4))


sizes = st.integers(1, 4)


@settings(max_examples=60, deadline=None)
@given(rest=st.lists(sizes, max_size=3), at=st.integers(0, 3), rows=sizes, batch=sizes)
def test_every_sample_is_read_from_its_place_and_its_gradient_goes_back(
    rest: list[int], at: int, rows: int, batch: int
) -> None:
    at = min(at, len(rest))
    shape: Shape = (*rest[:at], "B" if rows == 1 else f"{rows}*B", *rest[at:])
    axis, sample = batch_axis(shape)
    h = torch.randn(resolve(shape, batch))
    front = axis.to_front(h)
    assert front.shape[1:] == sample
    per_row = front.shape[0] // batch
    for i in range(batch):
        own = h.narrow(at, i * rows, rows).movedim(at, 0)
        assert torch.equal(front[i * per_row : (i + 1) * per_row].reshape(own.shape), own)
    assert torch.equal(axis.back(front, h), h)
    assert axis.back(front, h).is_contiguous()


def trainer(
    shape: Shape, target_shape: tuple[int, ...] = (), lr: float = 1e-2, **options: Any
) -> HeadTrainer:
    axis, sample = batch_axis(shape)
    spec = HeadSpec(width=8)
    head = build_head(sample, torch.float32, spec, 4, target_shape, torch.int64, **options)
    return HeadTrainer(head, lr, axis)


@pytest.mark.parametrize(
    ("shape", "plain", "turn", "back"),
    [
        (
            (5, "B", 16),
            ("B", 5, 16),
            lambda h: h.transpose(0, 1).contiguous(),
            lambda h: h.transpose(0, 1),
        ),
        (("5*B", 16), ("B", 5, 16), lambda h: h.view(-1, 16), lambda h: h.view(-1, 5, 16)),
        ((80, "B"), ("B", 80), lambda h: h.t().contiguous(), lambda h: h.t()),
    ],
    ids=["sequence first", "flattened", "features first"],
)
@pytest.mark.parametrize("target_shape", [(), (5,)])
def test_heads_learn_what_they_would_with_the_batch_in_front(
    shape: Shape,
    plain: Shape,
    turn: Callable[..., torch.Tensor],
    back: Callable[..., torch.Tensor],
    target_shape: tuple[int, ...],
) -> None:
    torch.manual_seed(0)
    turned, usual = trainer(shape, target_shape), trainer(plain, target_shape)
    for _ in range(5):
        h = torch.randn(resolve(plain, BATCH))
        gradient = torch.randn(h.shape)
        target = torch.randint(4, (BATCH, *target_shape))
        given, wanted = turn(h), turn(gradient)
        before = given.clone(), wanted.clone()
        assert turned.learn(given, target, wanted) == usual.learn(h, target, gradient)
        assert torch.equal(given, before[0])
        assert torch.equal(wanted, before[1])
    predicted = turned.predict(given, target)
    assert predicted.shape == given.shape
    assert predicted.abs().max() > 0
    assert torch.equal(back(predicted), usual.predict(h, target))


def test_predictions_follow_the_batch_size() -> None:
    torch.manual_seed(0)
    head = trainer((5, "B", 16))
    h, target = torch.randn(5, BATCH, 16), torch.randint(4, (BATCH,))
    for _ in range(10):
        head.learn(h, target, torch.randn(5, BATCH, 16))
    whole, half = head.predict(h, target), head.predict(h[:, :3], target[:3])
    assert torch.allclose(half, 2 * whole[:, :3], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("shape", [(5, "B", 16), ("5*B", 16)], ids=str)
def test_every_position_meets_the_target_of_its_own_sample(shape: Shape) -> None:
    torch.manual_seed(0)
    head = trainer(shape, (5,), lr=2e-2)
    axis, _ = batch_axis(shape)
    target = torch.randint(4, (BATCH, 5))
    h = torch.zeros(resolve(shape, BATCH))
    gradient = axis.back((target - 1.5).unsqueeze(2).expand(BATCH, 5, 16).contiguous(), h)
    for _ in range(150):
        head.learn(h, target, gradient)
    assert torch.allclose(head.predict(h, target), gradient, atol=0.1)


def test_a_lone_value_without_samples() -> None:
    torch.manual_seed(0)
    axis, sample = batch_axis(())
    none = HeadSpec(width=8, context="none")
    head = build_head(sample, torch.float32, none, None, None, None)
    lone = HeadTrainer(head, 1e-2, axis)
    for _ in range(20):
        lone.learn(torch.tensor(1.0), None, torch.tensor(-0.5))
    predicted = lone.predict(torch.tensor(1.0), None)
    assert predicted.shape == ()
    assert -0.8 < predicted.item() < -0.2


@dataclass(frozen=True)
class Cut:
    """How the tensor between the two stages of `mlp2`, `[B, 32]`, crosses."""

    shape: Shape
    send: str
    take: str


CUTS = {
    "sequence first": Cut(
        (4, "B", 8), ".view(-1, 4, 8).transpose(0, 1)", ".transpose(0, 1).reshape(-1, 32)"
    ),
    "features first": Cut((32, "B"), ".t()", ".t()"),
    "flattened": Cut(("4*B", 8), ".view(-1, 8)", ".view(-1, 32)"),
    "position-major": Cut(
        ("4*B", 8),
        ".view(-1, 4, 8).transpose(0, 1).reshape(-1, 8)",
        ".view(4, -1, 8).transpose(0, 1).reshape(-1, 32)",
    ),
    "rows of sequences": Cut(
        (2, "4*B", 4),
        ".view(-1, 2, 4, 4).transpose(0, 1).reshape(2, -1, 4)",
        ".view(2, -1, 4, 4).transpose(0, 1).reshape(-1, 32)",
    ),
    "rows of maps": Cut(("2*B", 2, 4, 2), ".view(-1, 2, 4, 2)", ".view(-1, 32)"),
}


@pytest.fixture
def cut(bundle: Callable[..., Path], request: pytest.FixtureRequest) -> Path:
    """A bundle whose crossing tensor has the batch elsewhere; 100 samples in batches of 16."""
    how = CUTS[request.param]

    def edit(name: str, text: str) -> str:
        if name != "stages.py":
            return text
        sent = "return self.drop(torch.relu(self.layers[1](x)))"
        taken = "self.layers[2](hidden)"
        assert sent in text and taken in text
        text = text.replace(sent, sent + how.send)
        return text.replace(taken, f"self.layers[2](hidden{how.take})")

    tensor = {"name": "hidden", "shape": list(how.shape), "dtype": "float32"}
    return bundle("mlp2", warmup_steps=2, edit=edit, tensors=[tensor | {"differentiable": True}])


@pytest.mark.processes
@pytest.mark.parametrize("cut", CUTS, indirect=True)
def test_decoupled_equals_reference(
    cut: Path,
    run_ranks: Callable[..., Any],
    reference: Callable[..., Any],
    same: Callable[..., bool],
    tmp_path: Path,
) -> None:
    run_ranks(cut, 2, f"--record={tmp_path / 'record'}")
    expected = reference(cut).run()
    assert len(expected.losses) == 14
    assert any(head.abs().max() > 0 for name, head in expected.heads.items() if "up" in name)
    assert same(read_record(tmp_path / "record"), expected)


@pytest.mark.processes
@pytest.mark.parametrize("cut", ["sequence first", "flattened"], indirect=True)
def test_oracle_equals_exact_which_follows_backprop(
    cut: Path, run_ranks: Callable[..., Any], same: Callable[..., bool], tmp_path: Path
) -> None:
    records: dict[str, Record] = {}
    for mode in ("exact", "oracle", "backprop"):
        record = tmp_path / mode
        ranks = 1 if mode == "backprop" else 2
        run_ranks(cut, ranks, f"--mode={mode}", "--no-dropout", f"--record={record}")
        records[mode] = read_record(record)
    exact, oracle = records["exact"], records["oracle"]
    assert same(Record(oracle.losses, oracle.parameters, {}), exact)
    torch.testing.assert_close(exact.losses, records["backprop"].losses, rtol=1e-5, atol=1e-6)
