"""How much a direction is worth beside a batch's own gradient."""

from __future__ import annotations

from math import sqrt
from statistics import stdev

import pytest
import torch
from torch import nn

from dnic.probe.expected import LARGEST_ERROR, Check, Expected, check, progress
from dnic.probe.figures import Compared, compare, summary


def seen(along: float, true_along: float) -> Check:
    return Check(Compared(1.0, 1.0, 1.0), along, true_along)


def test_a_direction_that_is_less_noisy_makes_more_progress() -> None:
    """The batch's own gradient is the expected one and noise; the direction has half of that."""
    made = torch.Generator().manual_seed(0)
    expected = [torch.ones(400)]
    checks = []
    for _ in range(8):
        noise = 3 * torch.randn(400, generator=made)
        checks.append(check([expected[0] + noise / 2], [expected[0] + noise], expected))
    found = progress(checks)
    assert found is not None
    assert found[0] == pytest.approx(sqrt((1 + 9) / (1 + 9 / 4)), rel=0.1)
    assert 0 < found[1] < 0.2
    assert all(0.3 < c.compared.cosine < 1 for c in checks)


def test_lengths_do_not_matter() -> None:
    one, other = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 0.0])
    checks = [check([scale * one], [other], [torch.tensor([2.0, 0.0])]) for scale in (1, 5, 0.1)]
    assert progress(checks) == pytest.approx((0.6, 0.0), abs=1e-6)
    none = [check([None], [other], [other])] * 3
    assert progress(none) == (0.0, 0.0)


def test_what_is_lost_in_noise_is_not_told() -> None:
    assert progress([seen(1.0, 1.0)] * 2) is None
    assert progress([seen(1.0, -1.0)] * 3) is None
    quiet = [seen(0.5 + e, 1.0) for e in (-0.1, 0.0, 0.1)]
    loud = [seen(0.5 + e, 1.0) for e in (-0.4, 0.0, 0.4)]
    assert progress(quiet) == pytest.approx((0.5, 0.1 / sqrt(3)))
    assert stdev([0.1, 0.5, 0.9]) / sqrt(3) > LARGEST_ERROR
    assert progress(loud) is None


def test_figures_of_several_tensors() -> None:
    predicted = [torch.tensor([1.0, 0.0]), None, torch.tensor([[2.0]])]
    true = [torch.tensor([1.0, 1.0]), torch.tensor([2.0]), None]
    found = compare(predicted, true)
    assert (found.predicted, found.true, found.product) == (5.0, 6.0, 1.0)
    assert found.error == 9.0 and found.cosine == pytest.approx(1 / sqrt(30))
    assert found.norm_ratio == pytest.approx(sqrt(5 / 6))
    better = Compared(1.0, 1.0, 0.9)
    both = summary([found, better, Compared(1.0, 0.0, 0.0)])
    assert both is not None
    assert both.explained == pytest.approx(1 - 9.2 / 7)
    assert both.beats_zero == 0.5
    assert both.cosine == pytest.approx((1 / sqrt(30) + 0.9) / 2)
    assert summary([Compared(1.0, 0.0, 0.0)]) is None


def test_a_gradient_leaves_model_and_chance_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))
    model[3].bias.requires_grad_(False)
    norm = model[1]
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    expected = Expected(
        model, lambda batch: model(batch[0]).square().mean(), ((x, x) for x in torch.randn(9, 6, 4))
    )
    torch.set_rng_state(state)
    found = expected.gradients()
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert norm.num_batches_tracked == 0 and model.training
    assert all(p.grad is None for p in model.parameters())
    assert list(found) == [name for name, _ in model.named_parameters() if name != "3.bias"]
