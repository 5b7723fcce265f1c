"""Guards in real runs: the bits of the reference, resumed too, and a bad head that does no harm."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from torch import Tensor

from dnic.runtime.bundle import load_bundle
from dnic.runtime.guard import told
from dnic.runtime.head_training import HeadStatistics, HeadTrainer
from dnic.runtime.record import Record, read_record
from dnic.runtime.reference_replicas import ReplicatedReference

Make = Callable[..., Path]
Run = Callable[..., Any]

QUICK = {"check_every": 2, "patience": 1, "retry_after": 3, "minimum": 0.1, "proof": 1}
STRICT = QUICK | {"minimum": 0.99}
CALM = {"check_every": 2, "patience": 9, "minimum": 0.0}
LEARNS_FAST = {"hidden_layers": 1, "width": 8, "context": "target", "lr": 1e-2}
honest = HeadTrainer.learn


def learns_the_opposite(
    self: HeadTrainer, h: Tensor, target: Tensor | None, gradient: Tensor, *others: Any
) -> HeadStatistics:
    """What such a head predicts is a good prediction, negated; its statistics say so."""
    told = honest(self, h, target, -gradient, *others)
    loss = told.loss + 4 * told.cosine * told.norm_ratio * told.zero
    return replace(told, cosine=-told.cosine, loss=loss)


def with_gradients(folder: Path, *gradients: str) -> None:
    """The same bundle with these gradients at its interfaces."""
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    for row, gradient in zip(plan["interfaces"], gradients, strict=True):
        row["gradient"] = gradient
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))


def turns_of(out: Path) -> dict[str, list[dict[str, Any]]]:
    """What the guards changed, over all epochs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (out / "metrics.jsonl").read_text().splitlines():
        for name, row in json.loads(line)["interfaces"].items():
            if "turns" in row:
                found.setdefault(name, []).extend(row["turns"])
    return found


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "gradients", "microbatches", "keys", "regimes"),
    [
        ("mlp3", "", 4, {"window": 3, "warmup_steps": 3}, {"exact", "predicted"}),
        ("skip3", "", 1, {"window": 2, "message": "bfloat16"}, {"exact", "predicted"}),
        ("conv2", "", 2, {"window": 2, "return_every": 2}, {"predicted"}),
        ("mlp3", "synthetic stale", 1, {"window": 1}, {"predicted"}),
        ("mlp2", "", 2, {"guard": CALM, "warmup_steps": 9, "warmup_until": 0.02}, {"predicted"}),
        ("mlp3", "virtual local", 2, {"guard": STRICT, "window": 2}, {"exact"}),
    ],
)
def test_guarded_run_equals_reference(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    gradients: str,
    microbatches: int,
    keys: dict[str, Any],
    regimes: set[str],
    tmp_path: Path,
) -> None:
    """Heads that begin with zero fail, wait, learn meanwhile, and are tried again."""
    folder = bundle(kind, **{"guard": QUICK, "head": LEARNS_FAST, **keys})
    if gradients:
        with_gradients(folder, *gradients.split())
    arguments = f"--record={tmp_path / 'record'}", f"--microbatches={microbatches}"
    run_ranks(folder, int(kind[-1]), *arguments)
    expected = reference(folder, microbatches=microbatches)
    assert same(read_record(tmp_path / "record"), expected.run())
    turns = turns_of(folder / "runs/decoupled")
    assert turns == expected.turns()
    assert {turn["regime"] for rows in turns.values() for turn in rows} == regimes


@pytest.mark.processes
def test_guarded_run_resumes_bit_for_bit(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    """Epochs of seven steps end within a check, and while interfaces wait."""
    keys = {"warmup_steps": 9, "warmup_until": 0.02}
    head = LEARNS_FAST | {"train_every": 2}
    folder = bundle("mlp3", window=2, guard=QUICK, head=head, **keys)
    run_ranks(folder, 3, "--epochs=3", f"--record={tmp_path / 'whole'}", f"--out={tmp_path / 'a'}")
    out, record = tmp_path / "b", tmp_path / "rest"
    run_ranks(folder, 3, "--epochs=1", f"--out={out}")
    run_ranks(folder, 3, "--epochs=3", f"--resume={out}", f"--out={out}", f"--record={record}")
    whole, rest = read_record(tmp_path / "whole"), read_record(record)
    assert same(Record(whole.losses[7:], whole.parameters, whole.heads), rest)
    expected = reference(folder)
    assert same(whole, expected.run(epochs=3))
    turns = turns_of(tmp_path / "a")
    assert turns == turns_of(out)
    assert [[(turn["step"], turn["regime"]) for turn in rows] for rows in turns.values()] == [
        [(8, "predicted"), (14, "exact")],
        [(8, "predicted")],
    ]


@pytest.mark.processes
def test_a_trial_goes_on_in_a_resumed_run(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    """The first stage's lasts from step 12 to 14; the second epoch ends between."""
    train = {
        "batch_size": 16,
        "epochs": 3,
        "seed": 3,
        "optimizer": {"name": "AdamW", "options": {"lr": 0.03}},
    }
    folder = bundle(
        "mlp3",
        plan_keys={"train": train},
        guard=QUICK | {"minimum": 0.02, "fallback": "none"},
        head={"hidden_layers": 0, "width": None, "context": "none", "lr": 0.02},
    )
    run_ranks(folder, 3, f"--record={tmp_path / 'whole'}", f"--out={tmp_path / 'a'}")
    out, record = tmp_path / "b", tmp_path / "rest"
    run_ranks(folder, 3, "--epochs=2", f"--out={out}")
    run_ranks(folder, 3, f"--resume={out}", f"--out={out}", f"--record={record}")
    whole, rest = read_record(tmp_path / "whole"), read_record(record)
    assert same(Record(whole.losses[14:], whole.parameters, whole.heads), rest)
    expected = reference(folder)
    assert same(whole, expected.run())
    turns = turns_of(tmp_path / "a")
    assert turns == turns_of(out)
    assert [(turn["step"], turn["regime"]) for turn in turns["cut01"]] == [
        (12, "predicted"),
        (14, "none"),
    ]


@pytest.mark.processes
def test_guards_of_replicas_decide_together(
    bundle: Make, run_ranks: Run, load_module: Run, same: Run, tmp_path: Path
) -> None:
    """One of them has no sample of the last batch; stages update by chance beside it.

    The head's trial fails, and both go back to what they were.
    """
    train = {
        "batch_size": 16,
        "epochs": 2,
        "seed": 3,
        "optimizer": {"name": "AdamW", "options": {"lr": 3e-2}},
        "update_probability": 0.8,
    }
    folder = bundle(
        "mlp2",
        edit=lambda name, text: text.replace("_data(100, 1)", "_data(97, 1)"),
        plan_keys={"train": train, "schedule": {"replicas": 2}},
        guard=QUICK,
        head={"hidden_layers": 0, "width": None, "context": "none", "lr": 0.02},
    )
    run_ranks(folder, 4, "--microbatches=2", f"--record={tmp_path / 'record'}")
    model, stages = load_module(folder / "model.py"), load_module(folder / "stages.py")
    given = load_bundle(folder), stages, model.build_model, model.loss, model.train_data
    expected = ReplicatedReference(*given, microbatches=2)
    assert same(read_record(tmp_path / "record"), expected.run())
    turns = turns_of(folder / "runs/decoupled")
    assert [column.turns() for column in expected._columns] == [turns, turns]
    assert [turn["regime"] for turn in turns["cut01"]] == ["predicted", "none"]


@pytest.mark.parametrize(("kind", "fallback"), [("mlp2", "none"), ("mlp3", "exact")])
def test_heads_that_do_harm_cost_no_more_than_none(
    bundle: Make, reference: Run, monkeypatch: pytest.MonkeyPatch, kind: str, fallback: str
) -> None:
    """25 epochs; the loss of the last four. Heads with rate 0 predict zero: the `none` baseline."""

    def loss(**keys: Any) -> float:
        run = reference(bundle(kind, window=2, **keys))
        guarded.append(run)
        return fmean(run.run(epochs=25).losses[-28:])

    guarded: list[Any] = []
    none = loss(guard=False, head=LEARNS_FAST | {"lr": 0.0})
    monkeypatch.setattr(HeadTrainer, "learn", learns_the_opposite)
    spoilt = loss(guard=False, head=LEARNS_FAST)
    guard = {"check_every": 5, "patience": 2, "retry_after": 20, "fallback": fallback}
    kept = loss(guard=guard, head=LEARNS_FAST)
    assert spoilt > 1.1 * none, "these heads do harm"
    # Without a gradient from the first step on, that is all there is.
    assert kept < 0.8 * none if fallback == "exact" else kept == none
    for rows in guarded[-1].turns().values():
        assert [turn["regime"] for turn in rows] == (["exact"] if fallback == "exact" else [])
        for turn in rows:
            assert turn["explained"] < 0
            assert "of no use" in told("cut", turn)
