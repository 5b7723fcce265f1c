"""Training heads: units, statistics, resuming, and whether a net learns from predictions."""

from __future__ import annotations

import copy
from collections import deque

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dnic.runtime.head_norm import RunningNorm
from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.heads import HeadSpec, build_head

BATCH = 16
Pair = tuple[Tensor, Tensor, Tensor]


def trainer(spec: HeadSpec | None = None, features: int = 12, classes: int = 4) -> HeadTrainer:
    spec = spec or HeadSpec(width=8)
    head = build_head((features,), torch.float32, spec, classes, (), torch.int64)
    return HeadTrainer(head, spec.lr)


def pairs(count: int, batch: int = BATCH, scale: float = 1.0, seed: int = 0) -> list[Pair]:
    """Activations, classes and gradients that depend linearly on both."""
    generator = torch.Generator().manual_seed(seed)
    to_gradient, per_class = (torch.randn(n, 12, generator=generator) for n in (12, 4))
    drawn = []
    for _ in range(count):
        h = torch.randn(batch, 12, generator=generator)
        y = torch.randint(4, (batch,), generator=generator)
        drawn.append((h, y, (h @ to_gradient / 12 + per_class[y]) * scale / batch))
    return drawn


def test_units_of_the_gradient_do_not_matter() -> None:
    one, tiny = trainer(), trainer()
    for (h, y, g), (_, _, small) in zip(pairs(20), pairs(20, scale=2.0**-20), strict=True):
        one.learn(h, y, g)
        tiny.learn(h, y, small)
    h, y, _ = pairs(1, seed=1)[0]
    assert torch.allclose(tiny.predict(h, y), one.predict(h, y) * 2.0**-20, rtol=1e-4, atol=1e-9)


def test_predictions_follow_the_batch_size() -> None:
    head = trainer()
    for pair in pairs(200):
        head.learn(*pair)
    h, y, g = pairs(1, batch=8)[0]
    whole, half = head.predict(h, y), head.predict(h[:4], y[:4])
    assert torch.allclose(half, 2 * whole[:4], rtol=1e-5, atol=1e-8)
    # A loss averaged over 8 samples has twice the gradients of one averaged over 16.
    ratio = torch.dot(whole.flatten(), g.flatten()) / torch.dot(g.flatten(), g.flatten())
    assert 0.7 < float(ratio) < 1.3


@pytest.mark.parametrize("spec", [HeadSpec(0, None), HeadSpec(0, 12), HeadSpec(1, 32)])
def test_learns_a_linear_gradient(spec: HeadSpec) -> None:
    head = trainer(spec)
    for pair in pairs(500, batch=32):
        statistics = head.learn(*pair)
    assert statistics.cosine > 0.97
    assert 0.9 < float(statistics.norm_ratio) < 1.1
    assert statistics.loss < 0.06


def test_context_decides() -> None:
    seen, unseen = trainer(), trainer(HeadSpec(width=8, context="none"))
    for h, y, _ in pairs(150):
        gradient = F.one_hot(y, 12).float() - 1 / 4
        cosines = [float(head.learn(h, y, gradient).cosine) for head in (seen, unseen)]
    assert cosines[0] > 0.98
    assert cosines[1] < 0.9


def test_statistics_compare_the_prediction_before_the_step() -> None:
    head = trainer()
    for pair in pairs(20):
        head.learn(*pair)
    h, y, g = pairs(1, seed=3)[0]
    # At momentum 0 statistics would stay; here they move, so compare on a copy that has seen them.
    twin = copy.deepcopy(head)
    twin._optimizer.param_groups[0]["lr"] = 0.0
    statistics = head.learn(h, y, g)
    twin.learn(h, y, g)
    predicted = twin.predict(h, y)
    assert torch.isclose(statistics.cosine, F.cosine_similarity(predicted.ravel(), g.ravel(), 0))
    assert torch.isclose(statistics.norm_ratio, predicted.norm() / g.norm(), rtol=1e-4)
    scale = twin._mean_square.sqrt() / BATCH
    assert torch.isclose(statistics.loss, F.mse_loss(predicted / scale, g / scale), rtol=1e-4)
    assert torch.isclose(statistics.zero, (g / scale).square().mean(), rtol=1e-4)


def test_a_gradient_of_zero_is_harmless() -> None:
    head = trainer()
    h, y, g = pairs(1)[0]
    for gradient in (torch.zeros_like(g), g, torch.zeros_like(g)):
        statistics = head.learn(h, y, gradient)
        assert torch.isfinite(torch.stack([statistics.cosine, statistics.loss])).all()
    assert torch.isfinite(head.predict(h, y)).all()


@pytest.mark.parametrize(("batch", "one_in"), [(16, 4), (15, 4), (3, 4)])
def test_learns_from_a_part_of_each_batch_in_turns(batch: int, one_in: int) -> None:
    """As if there were only that part, but for the units: gradients are of the whole batch."""
    spec = HeadSpec(width=8)
    head = build_head((12,), torch.float32, spec, 4, (), torch.int64)
    part, whole = HeadTrainer(copy.deepcopy(head), spec.lr, one_in=one_in), HeadTrainer(head, 5e-3)
    seen = []
    for step, (h, y, g) in enumerate(pairs(2 * one_in, batch)):
        block = step % one_in
        some = slice(block * batch // one_in, (block + 1) * batch // one_in)
        if batch < one_in:
            some = slice(0, batch)
        rows = h[some].shape[0]
        one = part.learn(h, y, g)
        other = whole.learn(h[some], y[some], g[some] * (batch / rows))
        assert torch.isclose(one.cosine, other.cosine, atol=1e-6)
        seen += h[some, 0].tolist() if step < one_in else []
    everything = [x for h, _, _ in pairs(one_in, batch) for x in h[:, 0].tolist()]
    assert len(seen) in (batch, one_in * batch)
    assert set(seen) <= set(everything)
    h, y, _ = pairs(1, batch)[0]
    assert torch.allclose(part.predict(h, y), whole.predict(h, y), rtol=1e-4, atol=1e-7)


def test_parts_keep_positions_with_their_sample() -> None:
    """`[n*B, d]` whose targets are of the samples, and targets that are one for no sample."""
    head = build_head((12,), torch.float32, HeadSpec(width=8), 4, (), torch.int64)
    trainer = HeadTrainer(head, 5e-3, one_in=2)
    h, y, g = torch.randn(12, 12), torch.arange(4), torch.randn(12, 12)
    first, targets, true = trainer._part(h, y, g)
    assert torch.equal(first, h[:6])
    assert targets is not None
    assert torch.equal(targets, y[:2])
    assert torch.equal(true, g[:6])
    odd = trainer._part(h, torch.arange(5), g)
    assert odd[0] is h
    assert trainer._part(h, None, g)[0].shape == (6, 12)


def test_resumes_bit_for_bit() -> None:
    sequence = pairs(30)
    whole, first = trainer(), trainer()
    for pair in sequence:
        whole.learn(*pair)
    for pair in sequence[:11]:
        first.learn(*pair)
    state = copy.deepcopy(first.state_dict())
    second = trainer(HeadSpec(width=8, lr=1.0))
    second.load_state_dict(state)
    for pair in sequence[11:]:
        second.learn(*pair)
    h, y, _ = sequence[0]
    assert torch.equal(whole.predict(h, y), second.predict(h, y))
    a, b = (nn.utils.parameters_to_vector(t.head.parameters()) for t in (whole, second))
    assert torch.equal(a, b)


def test_leaves_activations_and_gradients_alone() -> None:
    head = trainer()
    h, y, g = pairs(1)[0]
    source = h.clone().requires_grad_()
    sent = source * 1
    kept = g.clone()
    head.learn(sent, y, g)
    assert torch.equal(g, kept)
    assert torch.equal(sent, h)
    assert source.grad is None
    assert not head.predict(sent, y).requires_grad


def test_norm_standardises_each_feature() -> None:
    torch.manual_seed(0)
    norm = RunningNorm(3, 1, 3, torch.float32)
    x = torch.randn(64, 3, 50) * torch.tensor([1.0, 2.0, 4.0]).view(3, 1) + 5
    assert torch.equal(norm(x), x)
    norm.observe(x, 1.0)
    out = norm(x)
    assert torch.allclose(out.mean((0, 2)), torch.zeros(3), atol=1e-4)
    assert torch.allclose(out.std((0, 2)), torch.ones(3), atol=0.05)
    for _ in range(300):
        norm.observe(x - 5, 0.05)
    assert torch.allclose(norm.mean.flatten(), (x - 5).mean((0, 2)), atol=1e-3)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bundled = pytest.importorskip("sklearn.datasets").load_digits()
    images = torch.from_numpy(bundled.data).float() / 16 - 0.3
    labels = torch.from_numpy(bundled.target).long()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train, test = order[:1347], order[1347:]
    return images[train], labels[train], images[test], labels[test]


def accuracy(way: str, seed: int) -> float:
    """Test accuracy of a net cut in two whose lower half learns by backprop, a head or not at all.

    The true gradient reaches the head two updates late.
    """
    images, labels, test_images, test_labels = digits()
    torch.manual_seed(seed)
    lower = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
    upper = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    steps = [torch.optim.Adam(half.parameters(), 2e-3, fused=True) for half in (lower, upper)]
    head = build_head((64,), torch.float32, HeadSpec(), 10, (), torch.int64)
    learner, late = HeadTrainer(head, HeadSpec().lr), deque[Pair]()
    for _ in range(12):
        for batch in torch.randperm(len(labels)).split(64):
            h, y = lower(images[batch]), labels[batch]
            received = h.detach().requires_grad_()
            for step in steps:
                step.zero_grad()
            F.cross_entropy(upper(received), y).backward()
            assert received.grad is not None
            if way == "head":
                late.append((h.detach(), y, received.grad))
                h.backward(learner.predict(h.detach(), y))
            elif way == "backprop":
                h.backward(received.grad)
            for step in steps:
                step.step()
            if len(late) > 2:
                learner.learn(*late.popleft())
    with torch.no_grad():
        return float((upper(lower(test_images)).argmax(1) == test_labels).float().mean())


def test_digits_learn_with_a_head_two_updates_late() -> None:
    reached = {way: accuracy(way, seed=0) for way in ("backprop", "head", "nothing")}
    assert reached["head"] > reached["backprop"] - 0.025
    assert reached["head"] > reached["nothing"] + 0.02
