"""Tails: every kind learns its task, and gradients that point where the true ones do."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.loss import own_loss
from dnic.runtime.plan import HeadPlan, Size, TargetPlan, TensorSpec
from dnic.runtime.predictor import Predictor
from dnic.runtime.registry import PredictorRequest, predictor_kind
from dnic.runtime.tail_aim import Aim
from dnic.runtime.tail_clustered import ClusteredEnding, cluster_ends, narrowing_of
from dnic.runtime.tail_ending import ClassEnding, Ending
from dnic.runtime.tail_sampled import SampledEnding

CLASSES, TWO = TargetPlan((), "int64", 10), TargetPlan((), "int64", 2)
REAL = TargetPlan((), "float32", None)
BATCH = 64
LEVELS = 5


@dataclass(frozen=True)
class Problem:
    """A real task: what crosses an interface, the targets, and the network above it."""

    tensors: list[Tensor]
    target: Tensor
    planned: TargetPlan
    upper: Callable[..., Tensor]
    parameters: list[nn.Parameter]
    loss: Callable[[Tensor, Tensor], Tensor]
    output: tuple[Size, ...]


def images() -> tuple[Tensor, Tensor]:
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    pictures = torch.from_numpy(bundled.images).float() / 16
    return pictures, torch.from_numpy(bundled.target).long()


def tokens(output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output.flatten(0, 1), target.flatten())


class Sum(nn.Module):
    """What all tensors say; sequences before the last are averaged."""

    def __init__(self, *modules: nn.Module) -> None:
        super().__init__()
        self.parts = nn.ModuleList(modules)

    def forward(self, *tensors: Tensor) -> Tensor:
        read = [part(tensor) for part, tensor in zip(self.parts[:-1], tensors, strict=True)]
        first, last = read
        joined: Tensor = self.parts[-1](last + (first.mean(1, True) if first.ndim > 2 else first))
        return joined


def problem(name: str) -> Problem:
    pictures, labels = images()
    torch.manual_seed(1)
    flat = pictures.flatten(1)
    level = (pictures * (LEVELS - 1)).round().long()
    embed = nn.Embedding(LEVELS, 16)
    with torch.no_grad():
        maps = nn.Conv2d(1, 8, 3, padding=1)(pictures.unsqueeze(1)).relu()
        wide = F.interpolate(maps, scale_factor=3.0)
        sequence = nn.Linear(8, 16)(pictures).relu()
        pixels = embed(level.flatten(1)[:, :-1]) + embed(F.pad(level.flatten(1), (7, 0))[:, :63])
        vector = nn.Linear(64, 48)(flat).relu()
    mlp = nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
    each = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, LEVELS))
    conv = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())
    half = level.flatten(1)[:, 33:]
    found: dict[str, tuple[list[Tensor], Tensor, TargetPlan, nn.Module, Any]] = {
        "vector": ([vector], labels, CLASSES, mlp, F.cross_entropy),
        "sequence": (
            [sequence],
            labels,
            CLASSES,
            nn.Sequential(nn.Flatten(), nn.Linear(128, 10)),
            F.cross_entropy,
        ),
        "map": (
            [maps],
            labels,
            CLASSES,
            nn.Sequential(conv, nn.Flatten(), nn.Linear(512, 10)),
            F.cross_entropy,
        ),
        "wide map": (
            [wide],
            labels,
            CLASSES,
            nn.Sequential(conv, nn.AvgPool2d(3), nn.Flatten(), nn.Linear(512, 10)),
            F.cross_entropy,
        ),
        "tokens": (
            [pixels],
            level.flatten(1)[:, 1:],
            TargetPlan((63,), "int64", LEVELS),
            each,
            tokens,
        ),
        "segmentation": (
            [maps],
            level,
            TargetPlan((8, 8), "int64", LEVELS),
            nn.Sequential(conv, nn.Conv2d(8, LEVELS, 1)),
            F.cross_entropy,
        ),
        "regression": (
            [vector],
            1000 * F.avg_pool2d(pictures, 4).flatten(1),
            TargetPlan((4,), "float32", None),
            nn.Sequential(nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 4)),
            lambda output, target: F.mse_loss(1000 * output, target),
        ),
        "two tensors": (
            [vector, sequence],
            labels,
            CLASSES,
            Sum(
                nn.Linear(48, 32),
                nn.Sequential(nn.Flatten(), nn.Linear(128, 32)),
                nn.Linear(32, 10),
            ),
            F.cross_entropy,
        ),
        "encoder-decoder": (
            [sequence[:, :4], pixels[:, 32:]],
            half,
            TargetPlan((31,), "int64", LEVELS),
            Sum(
                nn.Linear(16, 32),
                nn.Sequential(nn.Linear(16, 32), nn.ReLU()),
                nn.Linear(32, LEVELS),
            ),
            tokens,
        ),
    }
    tensors, target, planned, upper, loss = found[name]
    with torch.no_grad():
        output = upper(*[tensor[:2] for tensor in tensors])
    shape = ("B", *output.shape[1:])
    return Problem(tensors, target, planned, upper, list(upper.parameters()), loss, shape)


def built(kind: str, task: Problem, head: HeadPlan) -> Predictor:
    specs = tuple(
        TensorSpec(f"h{index}", ("B", *tensor.shape[1:]), "float32", True)
        for index, tensor in enumerate(task.tensors)
    )
    request = PredictorRequest(specs, head, task.planned, task.loss, task.output)
    return predictor_kind(kind).build(request)


def steps(task: Problem, count: int) -> Any:
    """Batches with their true gradients, while the network above learns."""
    optimizer = torch.optim.Adam(task.parameters, 3e-3)
    generator = torch.Generator().manual_seed(0)
    for _ in range(count):
        rows = torch.randint(len(task.target), (BATCH,), generator=generator)
        tensors = [tensor[rows].requires_grad_() for tensor in task.tensors]
        loss = task.loss(task.upper(*tensors), task.target[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield [t.detach() for t in tensors], task.target[rows], [t.grad for t in tensors]


NAMES = (
    "vector",
    "sequence",
    "map",
    "wide map",
    "tokens",
    "segmentation",
    "regression",
    "two tensors",
    "encoder-decoder",
)
HEADS = {
    "linear": HeadPlan(0, None, lr=5e-3),
    "hidden": HeadPlan(1, 16, lr=5e-3),
    "sampled": HeadPlan(0, None, lr=5e-3, options={"targets": "sampled"}),
    "clustered": HeadPlan(0, None, lr=5e-3, options={"targets": "clustered"}),
    "model": HeadPlan(0, None, lr=5e-3, options={"loss": "model"}),
}


@pytest.mark.parametrize(
    ("name", "head"),
    [
        *itertools.product(NAMES, ("linear", "hidden")),
        *itertools.product(("vector", "tokens"), ("sampled", "clustered")),
        *itertools.product(("vector", "tokens", "segmentation"), ("model",)),
    ],
)
def test_every_tail_learns(name: str, head: str) -> None:
    """The gradient of a virtual tail beats the zero gradient; the loss of a local one falls."""
    task = problem(name)
    virtual, local = (built(kind, task, HEADS[head]) for kind in ("virtual", "local"))
    figures, losses = [], []
    for tensors, target, true in steps(task, 90 if head == "sampled" else 120):
        seen = virtual.learn(tensors, target, true)
        assert seen is not None
        figures.append([float(seen.cosine), float(seen.norm_ratio)])
        with torch.no_grad():
            losses.append(float(local.tail(local.leaves(tensors), target)))
        assert local.learn(tensors, target, None) is None
    cosine, ratio = torch.tensor(figures[-30:]).T
    assert cosine.mean() > 0.2
    # Part of the true gradient that is explained: zero explains nothing.
    assert (2 * cosine * ratio - ratio**2).mean() > 0.03
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])
    predicted = virtual.predict(tensors, target, 1)
    for gradient, tensor, exact in zip(predicted, tensors, true, strict=True):
        assert gradient.shape == tensor.shape
        assert F.cosine_similarity(gradient.flatten(), exact.flatten(), 0) > 0.15


@pytest.mark.parametrize("kind", ["virtual", "local"])
def test_the_gradient_is_that_of_the_tails_loss(kind: str) -> None:
    """By hand, without the machinery: a linear tail on standardised features."""
    task = problem("vector")
    tail = built(kind, task, HEADS["linear"])
    for tensors, target, true in steps(task, 30):
        tail.learn(tensors, target, true)
    (h,) = tensors
    norm, linear = tail.tail.readers[0].norm, tail.tail.ending.linear
    leaf = h.clone().requires_grad_()
    (expected,) = torch.autograd.grad(F.cross_entropy(linear(norm(leaf)), target), leaf)
    if kind == "virtual":
        expected = expected * tail.fits[0].factor
    assert torch.allclose(tail.predict([h], target, 1)[0], expected, atol=1e-8)
    halves = [
        tail.predict([part], y, 2)[0] for part, y in zip(h.chunk(2), target.chunk(2), strict=True)
    ]
    assert torch.allclose(torch.cat(halves), expected, atol=1e-8)


def test_neither_the_losses_scale_nor_the_batch_matters() -> None:
    """2**-20 of the loss: 2**-20 of the prediction. Half of a batch: twice, for each sample."""
    one, tiny = (built("virtual", problem("vector"), HEADS["hidden"]) for _ in range(2))
    small = 2.0**-20
    for tensors, target, true in steps(problem("vector"), 60):
        one.learn(tensors, target, true)
        tiny.learn(tensors, target, [g * small for g in true])
    whole = one.predict(tensors, target, 1)[0]
    assert torch.allclose(tiny.predict(tensors, target, 1)[0], whole * small, rtol=1e-3, atol=1e-10)
    half = one.predict([tensors[0][:32]], target[:32], 1)[0]
    assert torch.allclose(half, 2 * whole[:32], rtol=1e-4, atol=1e-8)
    # The same samples twice over: each has half of the gradient, nothing else changes.
    twice, once = copy.deepcopy(one), copy.deepcopy(one)
    once.learn(tensors, target, true)
    twice.learn([tensors[0].repeat(2, 1)], target.repeat(2), [true[0].repeat(2, 1) / 2])
    a, b = (p.predict(tensors, target, 1)[0] for p in (once, twice))
    assert torch.allclose(a, b, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("loss", [1.0, 1e-6])
def test_the_task_of_a_models_loss_is_scaled(loss: float) -> None:
    """A model's loss in other units weighs as much beside the match."""
    task = problem("vector")
    scaled = Problem(
        **{**vars(task), "loss": lambda output, target: loss * F.cross_entropy(output, target)}
    )
    tail = built("virtual", scaled, HEADS["model"])
    for tensors, target, true in steps(task, 20):
        tail.learn(tensors, target, [g * loss for g in true])
    moved = tail.tail.ending.linear.weight
    plain = built("virtual", task, HEADS["model"])
    for tensors, target, true in steps(problem("vector"), 20):
        plain.learn(tensors, target, true)
    assert torch.allclose(moved, plain.tail.ending.linear.weight, rtol=1e-2, atol=1e-4)


@pytest.mark.parametrize(
    ("kind", "head"), [("virtual", "hidden"), ("local", "sampled"), ("virtual", "clustered")]
)
def test_resumes_bit_for_bit(kind: str, head: str) -> None:
    task = problem("tokens")
    whole, first = (built(kind, task, HEADS[head]) for _ in range(2))
    sequence = list(steps(task, 12))
    for tensors, target, true in sequence:
        whole.learn(tensors, target, true)
    for tensors, target, true in sequence[:5]:
        first.learn(tensors, target, true)
    state = copy.deepcopy(first.state_dict())
    again = built(kind, task, HEADS[head])
    torch.manual_seed(99)
    again.load_state_dict(state)
    for tensors, target, true in sequence[5:]:
        again.learn(tensors, target, true)
    assert torch.equal(whole.predict(tensors, target, 1)[0], again.predict(tensors, target, 1)[0])
    for name, parameter in whole.parameters().items():
        assert torch.equal(parameter, again.parameters()[name])


def test_a_local_tail_learns_the_same_from_what_it_predicted() -> None:
    """One backward pass for both, or one for each: the same bits."""
    task = problem("map")
    both, apart = (built("local", task, HEADS["hidden"]) for _ in range(2))
    for tensors, target, _ in steps(task, 5):
        a = both.predict(tensors, target, 1)
        both.learn([t.detach() for t in tensors], target, None)
        b = apart.predict(tensors, target, 1)
        apart.learn([t.clone() for t in tensors], target, None)
        assert torch.equal(a[0], b[0])
    for name, parameter in both.parameters().items():
        assert torch.equal(parameter, apart.parameters()[name])


def test_learning_from_parts_of_a_batch() -> None:
    """As if there were only that part; gradients are of the whole batch."""
    task = problem("tokens")
    head = HeadPlan(1, 8, lr=5e-3)
    part, whole = (
        built("virtual", task, HeadPlan(1, 8, lr=5e-3, one_in=4)),
        built("virtual", task, head),
    )
    for step, (tensors, target, true) in enumerate(steps(task, 8)):
        begin = BATCH // 4 * ((step + 1) % 4)
        some = slice(begin, begin + BATCH // 4)
        part.learn(tensors, target, true)
        whole.learn([t[some] for t in tensors], target[some], [4 * g[some] for g in true])
    a, b = (p.predict(tensors, target, 1)[0] for p in (part, whole))
    assert torch.allclose(a, b, rtol=1e-4, atol=1e-8)


def test_nothing_else_is_touched() -> None:
    task = problem("vector")
    before = torch.get_rng_state()
    tail = built("virtual", task, HEADS["sampled"])
    tensors, target = [task.tensors[0][:8].clone()], task.target[:8]
    true = [torch.randn_like(tensors[0])]
    torch.set_rng_state(before)
    kept = tensors[0].clone(), true[0].clone()
    tail.learn(tensors, target, true)
    tail.predict(tensors, target, 1)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(tensors[0], kept[0])
    assert torch.equal(true[0], kept[1])
    assert not tail.predict(tensors, target, 1)[0].requires_grad


def test_nothing_is_predicted_before_anything_is_learnt() -> None:
    task = problem("vector")
    tail = built("virtual", task, HEADS["hidden"])
    assert not tail.predict([task.tensors[0][:8]], task.target[:8], 1)[0].any()


@pytest.mark.parametrize("ignored", [0, 5, 8])
def test_targets_that_are_no_class_are_ignored(ignored: int) -> None:
    torch.manual_seed(0)
    z, target = torch.randn(8, 6), torch.randint(4, (8,))
    target[:ignored] = -100
    for aim in (Aim("classes", (), 4), Aim("sampled", (), 4), Aim("clustered", (), 4)):
        torch.manual_seed(0)
        ending: Ending
        if aim.kind == "sampled":
            ending = SampledEnding(6, aim, None, 0, torch.float32)
        else:
            made = ClassEnding if aim.kind == "classes" else ClusteredEnding
            ending = made(6, aim, None, torch.float32)
        loss = ending(z, target)
        rest = copy.deepcopy(ending)(z[ignored:], target[ignored:]) if ignored < 8 else loss * 0
        if aim.kind != "sampled" or ignored == 8:
            assert torch.allclose(loss, rest)
        assert torch.isfinite(loss)


def sampled_and_full(drawn: int, draws: int) -> tuple[Tensor, Tensor]:
    """The mean gradient against a sample of 200 classes, and that against all of them."""
    torch.manual_seed(0)
    aim = Aim("sampled", (), 200)
    ending = SampledEnding(8, aim, None, 3, torch.float64, drawn)
    nn.init.normal_(ending.weight, std=0.5)
    target = torch.randint(40, (32,)) ** 2 // 8
    z = torch.randn(32, 8, dtype=torch.float64, requires_grad=True)
    whole = F.cross_entropy(z @ ending.weight[:, :-1].T + ending.weight[:, -1], target)
    (full,) = torch.autograd.grad(whole, z)
    found = [torch.autograd.grad(ending(z, target), z)[0] for _ in range(draws)]
    return torch.stack(found).mean(0), full


def test_the_expected_gradient_of_a_sample_is_that_of_all_classes() -> None:
    """But for an error that falls with the number of classes that are drawn."""
    errors = []
    for drawn, draws in ((8, 4000), (64, 1000), (512, 200)):
        sampled, full = sampled_and_full(drawn, draws)
        errors.append(float((sampled - full).norm() / full.norm()))
    assert errors[0] > 2 * errors[1] > 4 * errors[2]
    assert errors[2] < 0.02


def test_draws_are_expected_as_often_as_they_come() -> None:
    aim = Aim("sampled", (), 30)
    ending = SampledEnding(4, aim, None, 5, torch.float64, 16)
    index = torch.tensor([3, 3, 3, 7, 0, 0])
    valid = torch.tensor([True, True, True, True, False, False])
    counts, expected = torch.zeros(30, dtype=torch.float64), torch.zeros(30, dtype=torch.float64)
    for _ in range(6000):
        drawn, often = ending._draw(index, valid)
        counts += torch.bincount(drawn, minlength=30)
        expected[drawn] = often
    assert torch.allclose(counts / 6000, expected, rtol=0.08)
    assert expected[3] > 5 * expected[1]
    assert torch.isclose(expected.sum(), torch.tensor(16.0, dtype=torch.float64))


def test_two_levels_are_one_softmax() -> None:
    """Every class has a probability, whatever the order, and they add up to 1."""
    torch.manual_seed(0)
    ending = ClusteredEnding(16, Aim("clustered", (), 60), None, torch.float64)
    z = torch.randn(1, 16, dtype=torch.float64)
    ending.observe(torch.tensor([59, 59, 7, -100]), 1.0)
    assert ending.place[[59, 7, 0, 1]].tolist() == [0, 1, 2, 3]
    chances = [torch.exp(-ending(z, torch.tensor([k]))) for k in range(60)]
    assert torch.isclose(torch.stack(chances).sum(), torch.tensor(1.0, dtype=torch.float64))
    several = torch.tensor([[3, -100], [59, 7]])
    wide = torch.cat([z, 2 * z])
    apart = [ending(row, torch.tensor([y])) for row, y in ((z, 3), (2 * z, 59), (2 * z, 7))]
    assert torch.allclose(ending(wide, several), torch.stack(apart).mean())


def test_classes_are_put_in_the_order_of_their_frequency() -> None:
    """Anew at powers of two, for the first 64 batches; a copy goes on counting where it was."""
    ending = ClusteredEnding(8, Aim("clustered", (), 12), None, torch.float32)
    first = torch.tensor([5, 5, 9])
    ending.observe(first, 1.0)
    assert ending.place[[5, 9, 0, 11]].tolist() == [0, 1, 2, 11]
    for _ in range(2):
        ending.observe(torch.full((4,), 11), 1.0)
    assert ending.place[[11, 5, 9, 0]].tolist() == [0, 1, 2, 3]
    again = ClusteredEnding(8, Aim("clustered", (), 12), None, torch.float32)
    again.load_state_dict(ending.state_dict())
    for _ in range(61):
        again.observe(torch.full((4,), 2), 1.0)
    assert again.place[[2, 11]].tolist() == [0, 1]
    for _ in range(200):
        again.observe(torch.full((4,), 3), 1.0)
    assert again.place[3] == 6


@pytest.mark.parametrize(
    ("classes", "ends"),
    [
        (3, [1, 2, 3]),
        (10, [2, 5, 10]),
        (2048, [512, 1024, 2048]),
        (2049, [512, 2049]),
        (50_000, [512, 3072, 18_432, 50_000]),
    ],
)
def test_clusters(classes: int, ends: list[int]) -> None:
    assert cluster_ends(classes) == ends
    for features in (1, 8, 64, 256):
        narrowing = narrowing_of(features, len(ends) - 1)
        assert narrowing == 1 or features / narrowing ** (len(ends) - 1) >= 4
        ending = ClusteredEnding(features, Aim("clustered", (), classes), None, torch.float32)
        assert torch.isfinite(ending(torch.randn(3, features), torch.tensor([0, 1, classes - 1])))


@pytest.mark.parametrize(
    ("kind", "head", "planned", "problem_text"),
    [
        ("virtual", HeadPlan(), None, "a tail needs targets"),
        ("local", HeadPlan(), TargetPlan((), "complex64", None), "a tail needs targets"),
        ("virtual", HeadPlan(options={"tsak": 1}), CLASSES, "has no option 'tsak'"),
        ("local", HeadPlan(options={"task": 1.0}), CLASSES, "has no option 'task'"),
        ("virtual", HeadPlan(options={"task": -1.0}), CLASSES, "task cannot be -1.0"),
        ("virtual", HeadPlan(options={"targets": "some"}), CLASSES, "targets cannot be 'some'"),
        ("local", HeadPlan(options={"targets": "clustered"}), TWO, "nothing to cluster in 2 class"),
        ("local", HeadPlan(options={"targets": "sampled"}), REAL, "targets are real values"),
        ("local", HeadPlan(options={"loss": "model"}), CLASSES, "output is not one tensor"),
    ],
)
def test_what_cannot_be_built(
    kind: str, head: HeadPlan, planned: TargetPlan | None, problem_text: str
) -> None:
    tensor = TensorSpec("h", ("B", 4), "float32", True)
    with pytest.raises(RuntimeFault, match=problem_text):
        predictor_kind(kind).build(PredictorRequest((tensor,), head, planned))


def test_other_faults() -> None:
    tensor = TensorSpec("h", ("B", 4), "float32", True)
    head = HeadPlan(options={"loss": "model"})
    with pytest.raises(RuntimeFault, match=r"no loss\(output, target\)"):
        request = PredictorRequest((tensor,), head, CLASSES, own_loss, ("B", 10))
        predictor_kind("local").build(request)
    whole = TensorSpec("h", ("B", 4), "int64", True)
    with pytest.raises(RuntimeFault, match="no gradient for h, whose dtype is int64"):
        predictor_kind("local").build(PredictorRequest((whole,), HeadPlan(), CLASSES))
    tail = predictor_kind("local").build(PredictorRequest((tensor,), HeadPlan(), CLASSES))
    with pytest.raises(RuntimeFault, match=r"a tail for \[B, 4\] met a tensor of shape \[3, 5\]"):
        tail.predict([torch.randn(3, 5)], torch.zeros(3, dtype=torch.long), 1)
    with pytest.raises(RuntimeFault, match="tensors of 3 samples and targets of 2"):
        tail.predict([torch.randn(3, 4)], torch.zeros(2, dtype=torch.long), 1)
