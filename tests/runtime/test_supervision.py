"""When heads learn, when quality is read, and what plans may say of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import load_bundle
from dnic.runtime.crossing import crossings
from dnic.runtime.plan import GuardPlan, HeadPlan, InterfacePlan, Mode
from dnic.runtime.predictor import PredictionStatistics
from dnic.runtime.supervision import Supervision, explained

Make = Callable[..., Path]
Run = Callable[..., Any]

HEAD = HeadPlan(1, 4, "target", 1e-3)
PLAN = InterfacePlan(
    "cut", 0, 1, (), "synthetic", HEAD, 2, 0, guard=GuardPlan(3, 1, 5, minimum=0.25, proof=1)
)


def statistics(loss: float, zero: float = 1.0) -> PredictionStatistics:
    return PredictionStatistics(*(torch.tensor(figure) for figure in (0.5, 2.0, loss, zero)))


def test_explained() -> None:
    assert explained(1.5, 2.0) == 0.25
    assert explained(3.0, 2.0) == -0.5
    assert explained(0.0, 0.0) == 0.0
    assert explained(1.0, 0.0) == -torch.inf


def test_quality_is_that_of_all_batches_of_a_check() -> None:
    """A batch with a large gradient weighs more: of 6 in all 4.8 are left unexplained."""
    supervision = Supervision(PLAN)
    supervision.begin(100)
    for step in range(3):
        assert supervision.turn(step), "until it is proven"
        supervision.learnt(statistics(0.5))
    for step, batch in enumerate([statistics(0.5), statistics(0.3), statistics(4.0, 4.0)], 3):
        assert not supervision.turn(step)
        supervision.learnt(batch)
    assert supervision.turn(6), "0.2 is not more than 0.25"
    proven = {"step": 3, "regime": "predicted", "explained": 0.5, "again": None}
    failed = {"step": 6, "regime": "exact", "explained": pytest.approx(0.2), "again": 11}
    rest = {"cosine": 0.5, "norm_ratio": 2.0, "least": 0.25}
    assert supervision.figures() == {
        "regime": "exact",
        "turns": [row | rest for row in (proven, failed)],
    }


def test_no_check_is_of_batches_before_and_after_a_turn() -> None:
    """The head is let go after five batches, two of them of a check; the next three are bad."""
    guard = GuardPlan(3, 1, 5, minimum=0.25, proof=1)
    supervision = Supervision(replace(PLAN, guard=guard, warmup_steps=5))
    supervision.begin(100)
    for step in range(8):
        assert supervision.turn(step) == (step < 5)
        supervision.learnt(statistics(0.0 if step < 5 else 1.0))
        if step == 6:
            again = Supervision(replace(PLAN, guard=guard, warmup_steps=5))
            again.begin(100)
            again.load_state_dict(supervision.state_dict())
            supervision = again
    assert supervision.turn(8)


def test_the_device_is_waited_for_once_a_check(monkeypatch: pytest.MonkeyPatch) -> None:
    reads = []
    real = Tensor.tolist
    monkeypatch.setattr(Tensor, "tolist", lambda self: reads.append(self) or real(self))
    for name in ("item", "__float__", "__bool__"):
        monkeypatch.setattr(Tensor, name, lambda self: pytest.fail("a figure was read"))
    supervision = Supervision(PLAN)
    supervision.begin(100)
    for step in range(6):
        supervision.turn(step)
        supervision.learnt(statistics(0.5))
    assert len(reads) == 2


def test_where_nothing_depends_on_it_quality_is_not_measured() -> None:
    supervision = Supervision(replace(PLAN, guard=None))
    supervision.begin(100)
    for _ in range(5):
        supervision.learnt(statistics(9.0))
    assert supervision.state_dict()["sums"] is None


def test_every_kth_gradient_is_learnt_from() -> None:
    supervision = Supervision(replace(PLAN, head=replace(HEAD, train_every=3)))
    learnt = [supervision.learns() for _ in range(4)]
    other = Supervision(replace(PLAN, head=replace(HEAD, train_every=3)))
    other.load_state_dict(supervision.state_dict())
    learnt += [other.learns() for _ in range(3)]
    assert learnt == [False, False, True, False, False, True, False]


def test_heads_learn_at_every_kth_step_that_brings_a_gradient(bundle: Make, reference: Run) -> None:
    """14 batches, of which 0, 1 warm up and 3, 6, 9, 12 come back: 6, and 3 are learnt from."""
    head = {"hidden_layers": 1, "width": 8, "context": "target", "lr": 1e-3, "train_every": 2}
    made = reference(bundle("mlp2", return_every=3, warmup_steps=2, head=head))
    made.run()
    (interface,) = made._stages[0].above
    assert [trainer._steps for trainer in interface.predictor._trainers] == [3]


@pytest.mark.parametrize(
    ("keys", "fallback"),
    [
        ({"guard": None}, "exact"),
        ({"guard": {"fallback": "none"}}, "none"),
        ({"guard": True, "return_every": 2}, "none"),
        ({"guard": False}, None),
    ],
)
def test_the_guard_of_a_decoupled_run(
    bundle: Make, keys: dict[str, Any], fallback: str | None
) -> None:
    plan = load_bundle(bundle("mlp3", **keys)).plan
    modes: tuple[Mode, ...] = ("decoupled", "exact", "oracle", "stale")
    found = {
        mode: [row.guard and row.guard.fallback for row in crossings(plan, mode).interfaces]
        for mode in modes
    }
    assert found.pop("decoupled") == [fallback, fallback]
    assert all(rows == [None, None] for rows in found.values())


@pytest.mark.parametrize(
    ("kind", "gradient", "head", "guard", "expected"),
    [
        ("mlp2", "synthetic", {"context": "none"}, {}, (0.1, 0.2)),
        ("mlp2", "synthetic", {"context": "target"}, {}, (0.0, 0.2)),
        ("conv2", "synthetic", {"context": "target"}, {}, (0.0, 0.5)),
        ("mlp2", "virtual", {"task": 0.0}, {}, (-0.1, 0.2)),
        ("conv2", "virtual", {"task": 0.0}, {}, (-0.1, 0.5)),
        ("conv2", "virtual", {}, {}, (-0.1, 0.2)),
        ("conv2", "virtual", {}, {"minimum": 0.3}, (0.3, 0.3)),
        ("conv2", "virtual", {}, {"minimum": 0.3, "at_first": "auto"}, (0.3, 0.3)),
        ("conv2", "virtual", {}, {"minimum": 0.3, "at_first": 0.1}, (0.1, 0.3)),
        ("conv2", "virtual", {}, {"at_first": 0.1}, (0.1, 0.2)),
    ],
)
def test_how_much_is_enough_is_said_by_the_kind(
    bundle: Make,
    kind: str,
    gradient: str,
    head: dict[str, Any],
    guard: dict[str, Any],
    expected: tuple[float, float],
) -> None:
    """At first, and of a head that has had its time to grow: of vectors and of maps."""
    head = {"hidden_layers": 1, "width": 8, **head}
    folder = bundle(kind, gradient=gradient, guard=guard, head=head)
    (row,) = crossings(load_bundle(folder).plan, "decoupled").interfaces
    assert row.guard is not None and (row.guard.at_first, row.guard.minimum) == expected


@pytest.mark.parametrize(
    ("gradients", "asked"),
    [
        ("synthetic synthetic synthetic", [0.2 ** (1 / 3), 0.2**0.5, 0.2]),
        ("synthetic virtual synthetic", [0.2 ** (1 / 3), 0.2**0.5, 0.2]),
        # Losses of one's own, late and awaited gradients are as true as they get.
        ("synthetic local synthetic", [0.2, None, 0.2]),
        ("virtual stale synthetic", [0.2, None, 0.2]),
        ("synthetic synthetic exact", [0.2**0.5, 0.2, None]),
    ],
)
def test_along_a_chain_of_predictions_each_must_explain_more(
    bundle: Make, gradients: str, asked: list[float | None]
) -> None:
    """What is left of the true gradient below is the product of what each explains."""
    folder = bundle("mlp4", guard=True, head={"hidden_layers": 1, "width": 8})
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    for row, gradient in zip(plan["interfaces"], gradients.split(), strict=True):
        row["gradient"] = gradient
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    rows = crossings(load_bundle(folder).plan, "decoupled").interfaces
    found = [row.guard.minimum if row.guard else None for row in rows]
    assert found == [None if least is None else pytest.approx(least) for least in asked]


@pytest.mark.parametrize("to", [2, 3])
def test_over_a_skip_the_longest_chain_counts(bundle: Make, to: int) -> None:
    folder = bundle("mlp4", guard=True, head={"hidden_layers": 1, "width": 8})
    plan = load_bundle(folder).plan
    skip = replace(plan.interfaces[0], source=0 if to == 2 else 1, to=to)
    for rows in ((*plan.interfaces, skip), (skip, *plan.interfaces)):
        found = crossings(replace(plan, interfaces=rows), "decoupled").interfaces
        least = {(row.source, row.to): row.guard.minimum for row in found if row.guard}
        expected = {(0, 1): 0.2 ** (1 / 3), (1, 2): 0.2**0.5, (2, 3): 0.2}
        expected |= {(skip.source, to): 0.2 ** (1 / (4 - to))}
        assert least == {way: pytest.approx(share) for way, share in expected.items()}


def test_late_gradients_cannot_be_awaited(bundle: Make) -> None:
    folder = bundle("mlp3", guard=True)
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["interfaces"][1]["gradient"] = "stale"
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    rows = crossings(load_bundle(folder).plan, "decoupled").interfaces
    assert [row.guard and row.guard.fallback for row in rows] == ["none", None]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"guard": {"check_every": 0}}, "check_every cannot be 0"),
        ({"guard": {"patience": 1.5}}, "patience cannot be 1.5"),
        ({"guard": {"proof": 0}}, "proof cannot be 0"),
        ({"guard": {"retry_after": "soon"}}, "retry_after cannot be 'soon'"),
        ({"guard": {"minimum": 1.0}}, "minimum cannot be 1.0"),
        ({"guard": {"minimum": "all"}}, "minimum cannot be 'all'"),
        ({"guard": {"at_first": 1}}, "at_first cannot be 1"),
        ({"guard": {"growth": 0}}, "growth cannot be 0"),
        ({"guard": {"fallback": "stale"}}, "fallback 'stale' is not known"),
        ({"guard": {"fall_back": "exact"}}, "guard has no key 'fall_back'"),
        ({"guard": 3}, "guard cannot be 3"),
        ({"warmup_until": 2}, "warmup_until cannot be 2"),
        ({"warmup_until": "good"}, "warmup_until cannot be 'good'"),
        ({"head": {"hidden_layers": 1, "train_every": 0}}, "train_every 0 is too small"),
    ],
)
def test_edits_that_cannot_be(bundle: Make, keys: dict[str, Any], problem: str) -> None:
    folder = bundle("mlp2", **keys)
    with pytest.raises(RuntimeFault, match=problem):
        load_bundle(folder)
