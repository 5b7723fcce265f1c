"""A probe of real images beside a loop that was written out by hand, and what it refuses."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterator
from math import sqrt
from pathlib import Path
from statistics import stdev

import pytest
import torch
from torch import Tensor, nn

from dnic.compiler.load import load
from dnic.errors import PartitionError, RuntimeFault, SpecError
from dnic.partition.probed import Probe, ProbedRow
from dnic.probe.asked import Asked
from dnic.probe.expected import BATCHES, LARGEST_ERROR
from dnic.probe.run import _OTHERS, probe_model
from dnic.probe.subject import subject_of
from dnic.runtime.batches import Batches
from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.heads import HeadSpec, build_head
from dnic.runtime.inputs import Batch
from dnic.runtime.seeds import part_seed
from dnic.spec import Spec, spec_from_mapping

ROOT = Path(__file__).parent.parent.parent
STEPS, CUT = 12, 3
LATENESSES = (1, 4)
HALF = STEPS // 2

SMALL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def build_model():
    return nn.Sequential(
        nn.Linear(6, 8), nn.Dropout(0.5), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)
    )

def example_inputs():
    return (torch.randn(8, 6),)

def loss(output, target):
    return nn.functional.cross_entropy(output, target)

def train_data():
    made = torch.Generator().manual_seed(0)
    x = torch.randn(40, 6, generator=made)
    return TensorDataset(x, x[:, :3].argmax(1))
"""

OWN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 6)

    def forward(self, x):
        return {"loss": (self.down(torch.tanh(self.up(x))) - x).square().mean()}

def example_inputs():
    return {"x": torch.randn(8, 6)}

def train_data():
    return [{"x": row} for row in torch.randn(40, 6)]
"""


def digits(**train: object) -> Spec:
    return spec_from_mapping(
        {
            "model": {"file": str(ROOT / "examples/digits/model.py")},
            "train": {"batch_size": 64, "optimizer": {"name": "AdamW", "lr": 3e-4}, **train},
        },
        "test",
    )


@pytest.fixture
def small(tmp_path: Path) -> Callable[..., Spec]:
    """Builder of specs for a small model with dropout and batch normalisation."""

    def build(text: str = SMALL, **sections: object) -> Spec:
        file = tmp_path / "model.py"
        file.write_text(text)
        return spec_from_mapping({"model": {"file": str(file)}, **sections}, "test")

    return build


@pytest.fixture(scope="module")
def probed() -> Probe:
    asked = Asked(
        steps=STEPS, cuts=("layers.2",), sources=("synthetic", "stale"), latenesses=LATENESSES
    )
    return probe_model(digits(), asked)


def row_of(probe: Probe, source: str, lateness: int) -> ProbedRow:
    (row,) = (r for r in probe.rows if (r.source, r.lateness) == (source, lateness))
    return row


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])


class ByHand:
    """The same run with nothing of the probe's but heads, batches and seeds."""

    def __init__(self) -> None:
        loaded = load(digits())
        self.model, self.loss = loaded.model, loaded.source.loss
        assert self.loss is not None and loaded.source.train_data is not None
        assert isinstance(self.model.layers, nn.Sequential)
        data = loaded.source.train_data()
        options = {"shuffle": True, "loader_options": {}}
        self.feed = iter(Batches(data, 64, seed=0, **options).epoch(1))
        self.others = self.endless(Batches(data, 64, seed=part_seed(0, _OTHERS), **options))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=3e-4)
        self.below = list(self.model.layers[:CUT].parameters())
        self.seen: dict[tuple[str, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
        self.checked: dict[tuple[str, int], list[tuple[Tensor, Tensor, Tensor]]]
        self.checked = defaultdict(list)

    @staticmethod
    def endless(batches: Batches) -> Iterator[Batch]:
        for epoch in range(1, 1000):
            yield from batches.epoch(epoch)

    def gradient(self, batch: tuple[tuple[Tensor], Tensor]) -> Tensor:
        """Of the parameters below the cut, with the weights as they are."""
        model = copy.deepcopy(self.model)
        assert self.loss is not None
        loss = self.loss(model(*batch[0]), batch[1])
        return flat(list(torch.autograd.grad(loss, list(model.layers[:CUT].parameters()))))

    def expected(self) -> Tensor:
        return sum((self.gradient(next(self.others)) for _ in range(BATCHES)), torch.zeros(()))

    def run(self) -> None:
        head = HeadSpec(hidden_layers=1, width=64, context="target")
        seed = part_seed(part_seed(0, 0), 0)
        heads = {
            late: HeadTrainer(
                build_head((512,), torch.float32, head, 10, (), torch.int64, seed), 1e-3
            )
            for late in LATENESSES
        }
        history: list[tuple[Tensor, Tensor, Tensor]] = []
        kept: list[tuple[tuple[tuple[Tensor], Tensor], Tensor]] = []
        assert self.loss is not None
        for step in range(STEPS):
            batch = next(self.feed)
            for late in LATENESSES:
                if step >= late and (step - late) % 2 == 0:
                    old, gradient = kept[step - late]
                    pair = gradient, self.gradient(old)
                    self.checked["stale", late].append((*pair, self.expected()))
                    self.seen["stale", late].append(pair)
            toward = self.expected()
            (images,), target = batch
            h = self.model.layers[:CUT](images.flatten(1))
            behind = h.detach().requires_grad_()
            loss = self.loss(self.model.classifier(self.model.layers[CUT:](behind)), target)
            self.optimizer.zero_grad()
            loss.backward()
            assert behind.grad is not None
            true = flat(list(torch.autograd.grad(h, self.below, behind.grad, retain_graph=True)))
            kept.append((batch, true))
            history.append((h.detach(), target, behind.grad))
            for late, trainer in heads.items():
                guess = trainer.predict(h.detach(), target)
                self.seen["synthetic", late].append((guess.flatten(), behind.grad.flatten()))
                follows = torch.autograd.grad(h, self.below, guess, retain_graph=True)
                self.checked["synthetic", late].append((flat(list(follows)), true, toward))
                if step >= late:
                    trainer.learn(*history[step - late])
            torch.autograd.backward([h], [behind.grad])
            self.optimizer.step()


@pytest.fixture(scope="module")
def by_hand() -> ByHand:
    run = ByHand()
    run.run()
    return run


@pytest.mark.parametrize("lateness", LATENESSES)
@pytest.mark.parametrize("source", ["synthetic", "stale"])
def test_figures_are_those_of_a_loop_by_hand(
    probed: Probe, by_hand: ByHand, source: str, lateness: int
) -> None:
    row = row_of(probed, source, lateness)
    pairs = by_hand.seen[source, lateness]
    late = {"synthetic": range(HALF, STEPS), "stale": [3, 4, 5] if lateness == 1 else [1, 2, 3]}
    pairs = [pairs[i] for i in late[source]]
    checks = [by_hand.checked[source, lateness][i] for i in late[source]]
    errors = sum(float((p - t).square().sum()) for p, t in pairs)
    squares = sum(float(t.square().sum()) for _, t in pairs)
    cosines = [float(torch.cosine_similarity(p, t, dim=0)) for p, t in pairs]
    assert row.cosine == pytest.approx(sum(cosines) / len(pairs), rel=1e-3)
    ratios = [float(p.norm() / t.norm()) for p, t in pairs]
    assert row.norm_ratio == pytest.approx(sum(ratios) / len(pairs), rel=1e-3)
    assert row.explained == pytest.approx(1 - errors / squares, rel=1e-3, abs=1e-4)
    better = [float((p - t).norm()) < float(t.norm()) for p, t in pairs]
    assert row.beats_zero == pytest.approx(sum(better) / len(pairs))
    along = [float(d @ g / d.norm()) for d, _, g in checks]
    true_along = [float(t @ g / t.norm()) for _, t, g in checks]
    ratio = sum(along) / sum(true_along)
    scatter = stdev(a - ratio * t for a, t in zip(along, true_along, strict=True))
    error = scatter * sqrt(len(along)) / sum(true_along)
    if error > LARGEST_ERROR:
        assert row.progress is None and row.progress_error is None
    else:
        assert row.progress == pytest.approx(ratio, rel=1e-3)
        assert row.progress_error == pytest.approx(error, rel=1e-2, abs=1e-4)
        assert 0 < ratio < 2
    follows = [float(torch.cosine_similarity(d, t, dim=0)) for d, t, _ in checks]
    assert row.parameter_cosine == pytest.approx(sum(follows) / len(checks), rel=1e-3)
    assert row.checks == len(checks)


def test_what_a_probe_says_of_itself(probed: Probe) -> None:
    assert probed.model.name == "DigitsNet" and len(probed.model.digest) == 64
    (cut,) = probed.cuts
    assert (cut.after, cut.tensors[0].shape) == ("layers.2", ("B", 512))
    assert 0.3 < cut.share < 0.5 and cut.heads["synthetic"]["width"] == 64
    assert cut.parameters == 64 * 512 + 2 * 512 * 512 + 6 * 512
    training = probed.training
    assert (training.steps, training.samples, training.batch_size) == (STEPS, 1344, 64)
    assert training.last_loss < training.first_loss
    assert row_of(probed, "synthetic", 1).learn_us > 0
    assert probed.skipped == ()
    assert Probe.model_validate_json(probed.model_dump_json()) == probed


def test_the_same_seed_gives_the_same_figures(small: Callable[..., Spec]) -> None:
    asked = Asked(steps=10, latenesses=(1, 3), sources=("synthetic", "virtual", "local", "stale"))

    def figures(seed: int) -> list[ProbedRow]:
        probe = probe_model(small(train={"seed": seed}), asked)
        return [r.model_copy(update={"predict_us": 0.0, "learn_us": 0.0}) for r in probe.rows]

    first = figures(0)
    assert first == figures(0)
    assert first != figures(1)
    local = [row for row in first if row.source == "local" and row.cut == first[0].cut]
    assert [row.lateness for row in local] == [1, 3]
    assert local[0].cosine == local[1].cosine


def test_without_updates_late_gradients_are_right(small: Callable[..., Spec]) -> None:
    """Dropout must draw the same again, and batch normalisation's statistics must not matter."""
    spec = small(train={"optimizer": {"name": "SGD", "lr": 0.0}})
    probe = probe_model(spec, Asked(steps=14, latenesses=(1, 3), sources=("stale",)))
    assert {row.lateness for row in probe.rows} == {1, 3}
    for row in probe.rows:
        assert row.explained == pytest.approx(1.0, abs=1e-9)
        assert row.progress is None or row.progress == pytest.approx(1.0)


def test_the_zero_gradient_explains_nothing(small: Callable[..., Spec]) -> None:
    probe = probe_model(small(), Asked(steps=4, sources=("none",), latenesses=(2,)))
    for row in probe.rows:
        assert (row.cosine, row.norm_ratio, row.explained, row.beats_zero) == (0, 0, 0, 0)
        assert row.parameter_cosine == 0 and row.progress in (0, None)


def test_the_process_is_left_as_it_was(small: Callable[..., Spec]) -> None:
    smallest = torch.tensor(torch.finfo(torch.float64).tiny, dtype=torch.float64)
    for flushed in (True, False):
        torch.set_flush_denormal(flushed)
        try:
            probe_model(small(), Asked(steps=2, sources=("none",), latenesses=(1,)))
            assert (float(smallest / 2) == 0.0) is flushed
        finally:
            torch.set_flush_denormal(False)


def test_time_is_limited_and_told(small: Callable[..., Spec]) -> None:
    told: list[str] = []
    asked = Asked(steps=50, sources=("synthetic",), latenesses=(1,), seconds=1e-9)
    probe = probe_model(small(), asked, told.append)
    assert probe.training.steps == 1 and all(row.checks == 1 for row in probe.rows)
    probe_model(small(), Asked(steps=3, sources=("synthetic",), latenesses=(1,)), told.append)
    assert told[-1].startswith("step 2 of 3, loss ") and told[-1].endswith("s left")


def test_a_scheduler_clipping_and_bf16(small: Callable[..., Spec]) -> None:
    scheduler = {"name": "StepLR", "step_size": 1, "gamma": 0.5, "interval": "step"}
    train = {"scheduler": scheduler, "clip_norm": 0.1, "precision": "bf16"}
    probe = probe_model(small(train=train), Asked(steps=6, sources=("synthetic",), latenesses=(1,)))
    training = probe.training
    assert (training.scheduler, training.clip_norm) == ("StepLR", 0.1)
    assert training.precision == "bf16"
    plain = probe_model(small(), Asked(steps=6, sources=("synthetic",), latenesses=(1,)))
    assert plain.training.last_loss != training.last_loss


@pytest.mark.parametrize(
    ("old", "new", "sections", "says"),
    [
        ("def train_data", "def more_data", {}, "no train_data, and a probe trains"),
        ("", "", {"model": {"meta": True}}, "no weights"),
    ],
)
def test_what_cannot_be_probed(
    small: Callable[..., Spec], old: str, new: str, sections: dict[str, object], says: str
) -> None:
    spec = small(SMALL.replace(old, new))
    if sections:
        spec = spec.model_copy(update={"model": spec.model.model_copy(update=sections["model"])})
    with pytest.raises(SpecError, match=says):
        probe_model(spec, Asked(steps=2))


def test_no_cut_with_a_gradient(small: Callable[..., Spec]) -> None:
    frozen = SMALL.replace("    return nn.Seq", "    model = nn.Seq").replace(
        "    )\n\ndef example",
        "    )\n    model[0].requires_grad_(False)\n    return model[:1]\n\ndef example",
    )
    with pytest.raises(PartitionError, match="cannot be cut anywhere"):
        probe_model(small(frozen), Asked(steps=2))
    still = SMALL.replace("    return nn.Seq", "    model = nn.Seq").replace(
        "    )\n\ndef example",
        "    )\n    model[0].requires_grad_(False)\n    model[2].requires_grad_(False)\n"
        "    return model\n\ndef example",
    )
    with pytest.raises(PartitionError, match="nothing differentiable crosses"):
        probe_model(small(still), Asked(steps=2))


def test_training_that_diverges(small: Callable[..., Spec]) -> None:
    spec = small(train={"optimizer": {"name": "SGD", "lr": 1e30}})
    with pytest.raises(RuntimeFault, match="the loss is"):
        probe_model(spec, Asked(steps=20, sources=("stale",)))


def test_what_a_source_lacks_is_said(small: Callable[..., Spec]) -> None:
    """A model that computes its own loss from samples that hold no targets."""
    spec = small(OWN)
    assert subject_of(spec, Asked()).target_plan is None
    sources = ("synthetic", "synthetic-no-context", "local")
    probe = probe_model(spec, Asked(steps=2, sources=sources, latenesses=(1,)))
    assert {row.source for row in probe.rows} == {"synthetic-no-context"}
    assert {skip.source for skip in probe.skipped} == {"synthetic", "local"}
    assert all("needs targets" in skip.reason for skip in probe.skipped)
