"""Heads: what they can be built for, what they refuse, how they read tensors and targets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.head_coarse import Coarse
from dnic.runtime.head_context import ClassContext, nearest
from dnic.runtime.head_layout import Layout, layout_of
from dnic.runtime.head_regressor import Bend, Full, LowRank
from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.heads import Head, HeadSpec, build_head

BATCH = 12


def build(
    shape: tuple[int, ...],
    target_shape: tuple[int, ...] | None = (),
    classes: int | None = 5,
    spec: HeadSpec | None = None,
    **options: Any,
) -> Head:
    dtype = torch.float32 if classes is None else torch.int64
    return build_head(
        shape, torch.float32, spec or HeadSpec(width=8), classes, target_shape, dtype, **options
    )


def targets(shape: tuple[int, ...], classes: int | None, batch: int = BATCH) -> Tensor:
    if classes is None:
        return torch.randn(batch, *shape)
    return torch.randint(classes, (batch, *shape))


SHAPES = {
    "vector, class": ((16,), (), 5),
    "vector, several classes": ((16,), (3,), 5),
    "vector, many classes": ((16,), (40,), 5),
    "vector, real": ((16,), (), None),
    "vector, image": ((16,), (3, 40, 40), None),
    "lone value": ((), (), 5),
    "small sequence, class": ((6, 16), (), 5),
    "large sequence, class": ((300, 16), (), 5),
    "sequence, next token": ((6, 16), (6,), 5),
    "sequence, coarser tokens": ((60, 16), (20,), 5),
    "sequence, real": ((6, 16), (6, 2), None),
    "small map, class": ((4, 5, 6), (), 5),
    "large map, class": ((4, 40, 30), (), 5),
    "large volume, class": ((4, 12, 10, 11), (), 5),
    "five axes, class": ((4, 5, 5, 5, 10), (), 5),
    "map, segmentation": ((4, 5, 6), (10, 12), 5),
    "map, smaller segmentation": ((4, 10, 12), (6, 6), 5),
    "map, image": ((4, 5, 6), (3, 10, 12), None),
    "map, depth": ((4, 5, 6), (5, 6), None),
    "windows, features last": ((7, 7, 16), (), 5),
    "large windows, features last": ((20, 20, 16), (), 5),
    "no target": ((16,), None, None),
}
SPECS = {
    "full linear": HeadSpec(0, None),
    "low rank linear": HeadSpec(0, 8),
    "one hidden layer": HeadSpec(1, 8),
    "full width": HeadSpec(1, None),
    "three hidden layers": HeadSpec(3, 8),
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize(("shape", "target_shape", "classes"), SHAPES.values(), ids=SHAPES)
def test_starts_at_zero_and_learns(
    shape: tuple[int, ...],
    target_shape: tuple[int, ...] | None,
    classes: int | None,
    spec: HeadSpec,
) -> None:
    if target_shape is None:
        spec = HeadSpec(spec.hidden_layers, spec.width, "none")
    torch.manual_seed(0)
    trainer = HeadTrainer(build(shape, target_shape, classes, spec), lr=1e-2)
    h = torch.randn(BATCH, *shape)
    target = None if target_shape is None else targets(target_shape, classes)
    assert torch.equal(trainer.predict(h, target), torch.zeros_like(h))
    gradient = (1 + 0.3 * h) / BATCH
    losses = [float(trainer.learn(h, target, gradient).loss) for _ in range(12)]
    predicted = trainer.predict(h, target)
    assert losses[0] == pytest.approx(1.0, abs=1e-3)
    assert losses[-1] < 0.9
    assert predicted.shape == h.shape
    assert torch.sum(predicted * gradient) > 0


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        ({"dtype": torch.int64}, "[B, 16, 3]"),
        ({"dtype": torch.complex64}, "[B, 16, 3]"),
        ({"sample_shape": (16, 0)}, "[B, 16, 0]"),
        ({"spec": HeadSpec(hidden_layers=4)}, "4 hidden layers"),
        ({"spec": HeadSpec(hidden_layers=-1)}, "-1 hidden layers"),
        ({"spec": HeadSpec(width=0)}, "0 wide"),
        ({"spec": HeadSpec(context="label")}, "'label'"),
        ({"target_sample_shape": None}, "there are none"),
        ({"target_sample_shape": (0,)}, "[B, 0]"),
        ({"target_dtype": torch.float32}, "5 classes"),
        ({"classes": 0}, "0 classes"),
        ({"classes": None, "target_dtype": torch.complex64}, "complex64"),
    ],
)
def test_refuses(arguments: dict[str, Any], names: str) -> None:
    given: dict[str, Any] = {
        "sample_shape": (16, 3),
        "dtype": torch.float32,
        "spec": HeadSpec(),
        "classes": 5,
        "target_sample_shape": (),
        "target_dtype": torch.int64,
    }
    build_head(**given)
    with pytest.raises(RuntimeFault) as caught:
        build_head(**(given | arguments))
    assert names in str(caught.value)
    assert "[B, 16" in str(caught.value)


def test_refuses_another_shape_and_missing_targets() -> None:
    head = build((4, 5, 6))
    with pytest.raises(RuntimeFault, match=r"\[B, 4, 5, 6\] met .*\[12, 4, 5, 7\]"):
        head(torch.randn(BATCH, 4, 5, 7), targets((), 5))
    with pytest.raises(RuntimeFault, match="given none"):
        head(torch.randn(BATCH, 4, 5, 6), None)
    with pytest.raises(RuntimeFault, match="12 rows meets targets of 5 samples"):
        head(torch.randn(BATCH, 4, 5, 6), targets((), 5, batch=5))


def test_initial_parameters_depend_on_the_seed_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = build((16,)).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = build((16,)).state_dict(), build((16,), seed=1).state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["regressor.down.weight"], other["regressor.down.weight"])


@pytest.mark.parametrize(
    ("dtype", "parameters"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_predictions_have_the_tensors_dtype(dtype: torch.dtype, parameters: torch.dtype) -> None:
    head = build_head((16,), dtype, HeadSpec(), 5, (), torch.int64)
    assert {p.dtype for p in head.parameters()} == {parameters}
    trainer = HeadTrainer(head, 1e-3)
    h, target = torch.randn(BATCH, 16).to(dtype), targets((), 5)
    trainer.learn(h, target, torch.randn(BATCH, 16).to(dtype))
    assert trainer.predict(h, target).dtype == dtype


LAYOUTS = {
    (): Layout(1, (), False),
    (7,): Layout(7, (), False),
    (5, 7): Layout(7, (5,), False),
    (7, 5, 6): Layout(7, (5, 6), True),
    (7, 5, 5): Layout(7, (5, 5), True),
    (5, 5, 7): Layout(7, (5, 5), False),
    (5, 5, 5): Layout(5, (5, 5), True),
    (7, 2, 3, 4): Layout(7, (2, 3, 4), True),
    (7, 2, 3, 4, 5): Layout(7, (2, 3, 20), True),
}


@pytest.mark.parametrize(("shape", "layout"), LAYOUTS.items(), ids=str)
def test_layouts(shape: tuple[int, ...], layout: Layout) -> None:
    assert layout_of(shape) == layout


@pytest.mark.parametrize("shape", [(5, 7), (7, 5, 6), (5, 5, 7)])
def test_spread_codes_meet_their_own_positions(shape: tuple[int, ...]) -> None:
    layout = layout_of(shape)
    # A canonical tensor and code whose entries say which sample and position they belong to.
    places = torch.arange(2.0 * layout.count).view(2, *layout.positions)
    axis = 1 if layout.channels_first else -1
    h = places.unsqueeze(axis).expand(2, *shape)
    canonical = layout.canonical(h)
    spread = layout.spread(places.unsqueeze(-1).expand(2, *layout.positions, 3))
    assert torch.equal(canonical.select(1, 0), spread.select(1, 0))
    samples = layout.spread(torch.arange(2.0).unsqueeze(1).expand(2, 3)).select(1, 0)
    expected = (canonical.select(1, 0) >= layout.count).float()
    assert torch.equal(samples.expand_as(expected), expected)


def test_small_tensors_with_one_target_are_read_whole() -> None:
    def features(head: Head) -> int:
        assert isinstance(head.regressor, LowRank)
        return head.regressor.up.out_features if head.coarse is None else -1

    assert features(build((4, 5, 6))) == 120
    assert features(build((6, 16))) == 96
    assert features(build((6, 16), (6,))) == 16
    assert features(build((64, 40, 40))) == -1
    linear = build((4, 5, 6), spec=HeadSpec(0, None))
    assert isinstance(linear.regressor, Full)
    assert linear.regressor.linear.weight.shape == (4, 4, 1)


def test_every_position_meets_its_own_class() -> None:
    trainer = HeadTrainer(build((6, 4), (6,), 2), lr=2e-2)
    target = targets((6,), 2)
    gradient = (target * 2.0 - 1).unsqueeze(-1).expand(BATCH, 6, 4)
    h = torch.zeros(BATCH, 6, 4)
    for _ in range(100):
        trainer.learn(h, target, gradient)
    assert torch.allclose(trainer.predict(h, target), gradient, atol=0.1)


def test_coarse_part_knows_where_it_is() -> None:
    trainer = HeadTrainer(build((2, 64, 64)), lr=1e-2)
    gradient = torch.ones(BATCH, 2, 64, 64)
    gradient[..., 32:] = -1
    h, target = torch.zeros(BATCH, 2, 64, 64), targets((), 5)
    for _ in range(60):
        cosine = trainer.learn(h, target, gradient).cosine
    assert cosine > 0.98


@pytest.mark.parametrize("shape", [(3, 40, 32), (3, 41, 37), (20, 20, 16), (400, 16), (300, 16)])
def test_coarse_part_stretches_like_nearest_interpolation(shape: tuple[int, ...]) -> None:
    layout = layout_of(shape)
    coarse = Coarse(layout, 1, 4, torch.float32)
    nn.init.normal_(coarse.regressor.up.weight)
    x = torch.randn(2, *shape)
    predicted = coarse(x, None, torch.ones(2, *shape)) - 1
    first = x if layout.channels_first else x.movedim(-1, 1)
    cells = F.adaptive_avg_pool1d(first, 4) if x.ndim == 3 else F.adaptive_avg_pool2d(first, 4)
    small = coarse.regressor(cells.flatten(1), None).view_as(cells)
    wide = F.interpolate(small, size=layout.positions, mode="nearest")
    expected = wide if layout.channels_first else wide.movedim(1, -1)
    assert torch.allclose(predicted, expected, atol=1e-5)


def test_units_of_real_targets_do_not_matter() -> None:
    torch.manual_seed(0)
    trainer = HeadTrainer(build((16,), (2,), None), lr=1e-2)
    for _ in range(120):
        h, standard = torch.randn(BATCH, 16), torch.randn(BATCH, 2)
        target = standard * torch.tensor([1e4, 1e-4]) + torch.tensor([1e5, 0.0])
        cosine = trainer.learn(h, target, standard.repeat(1, 8)).cosine
    assert cosine > 0.9


def context(
    target_shape: tuple[int, ...], shape: tuple[int, ...], classes: int = 3
) -> ClassContext:
    return ClassContext(classes, target_shape, layout_of(shape), 2, torch.float32)


def test_ignored_targets_share_a_row() -> None:
    code = context((), (8,))(torch.tensor([0, 1, 2, -100, 255, -1, 3]), 7)
    assert torch.equal(code[3:], code[3:4].expand(4, 2))
    assert len({tuple(row) for row in code.tolist()}) == 4


def test_small_unsigned_targets() -> None:
    classes = context((), (8,))
    given = torch.tensor([0, 2, 255], dtype=torch.uint8)
    assert torch.equal(classes(given, 3), classes(torch.tensor([0, 2, -100]), 3))


def test_tensors_of_several_rows_per_sample() -> None:
    classes = context((), (8,))
    target = torch.tensor([0, 2])
    assert torch.equal(classes(target, 6), classes(torch.tensor([0, 0, 0, 2, 2, 2]), 6))
    tokens = context((20,), (8,))
    target = torch.randint(3, (2, 20))
    assert torch.equal(tokens(target, 40), tokens(target.view(40), 40))


def test_several_labels_of_one_sample_are_told_apart() -> None:
    several = context((2,), (8,))
    codes = several(torch.tensor([[0, 1], [1, 0]]), 2)
    assert not torch.allclose(codes[0], codes[1])


def test_nearest_takes_the_entry_at_the_centre() -> None:
    index = torch.arange(6).view(1, 6)
    assert nearest(index, (3,)).tolist() == [[1, 3, 5]]
    assert nearest(index, (2,)).tolist() == [[1, 4]]
    assert nearest(index[:, :2], (4,)).tolist() == [[0, 0, 1, 1]]
    assert nearest(index.view(1, 2, 3), (2, 1)).tolist() == [[[1], [4]]]


def test_bend_rectifies_the_first_half() -> None:
    z = torch.tensor([[-1.0, -1.0, -1.0, 2.0, 3.0]])
    z[0, 0] = 4
    assert Bend(5, torch.float32)(z).tolist() == [[4.0, 0.0, -1.0, 2.0, 3.0]]


sizes = st.integers(1, 6)


@settings(max_examples=40, deadline=None)
@given(
    shape=st.lists(sizes, max_size=4).map(tuple),
    target_shape=st.lists(sizes, max_size=3).map(tuple),
    classes=st.none() | st.integers(1, 4),
    hidden_layers=st.integers(0, 3),
    width=st.none() | st.integers(1, 9),
    batch=st.integers(1, 3),
)
def test_any_shape(
    shape: tuple[int, ...],
    target_shape: tuple[int, ...],
    classes: int | None,
    hidden_layers: int,
    width: int | None,
    batch: int,
) -> None:
    head = build(shape, target_shape, classes, HeadSpec(hidden_layers, width))
    trainer = HeadTrainer(head, 1e-2)
    h, target = torch.randn(batch, *shape), targets(target_shape, classes, batch)
    statistics = trainer.learn(h, target, torch.randn(batch, *shape))
    assert torch.isfinite(torch.stack([statistics.cosine, statistics.norm_ratio])).all()
    predicted = trainer.predict(h, target)
    assert predicted.shape == h.shape
    assert torch.isfinite(predicted).all()
