"""Sparse updates: who updates when, the bits of the reference, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import load_bundle
from dnic.runtime.crossing import Returns, crossings
from dnic.runtime.links import Count
from dnic.runtime.record import Record, read_record
from dnic.runtime.updates import Updates

Make = Callable[..., Path]
Run = Callable[..., Any]

SCHEDULED = {
    "batch_size": 16,
    "epochs": 2,
    "optimizer": {"name": "AdamW", "options": {"lr": 3e-3}},
    "scheduler": {"name": "LinearLR", "options": {"total_iters": 9}, "interval": "step"},
    "seed": 3,
    "clip_norm": 1.0,
}


def sparse(folder: Path, probability: object, *gradients: str, **keys: Any) -> Path:
    """The same bundle with this probability, and these gradients at its interfaces."""
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["train"]["update_probability"] = probability
    for row, gradient in zip(plan["interfaces"], gradients, strict=False):
        row["gradient"] = gradient
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan | keys))
    return folder


def test_stages_update_by_chance_and_by_themselves() -> None:
    steps = range(4000)
    found = [[step in Updates(0.2, 3, stage) for step in steps] for stage in range(3)]
    assert found[0] == [step in Updates(0.2, 3, 0) for step in steps], "the same again"
    for ones in found:
        assert fmean(ones) == pytest.approx(0.2, abs=0.02)
    both = fmean(a and b for a, b in zip(found[0], found[1], strict=True))
    assert both == pytest.approx(0.04, abs=0.01), "independently of one another"
    more = [step in Updates(0.5, 3, 0) for step in steps]
    assert all(b for a, b in zip(found[0], more, strict=True) if a)
    assert found[0] != [step in Updates(0.2, 4, 0) for step in steps]
    assert all(step in Updates(1.0, 3, 0) for step in steps)


@given(
    st.integers(1, 3), st.integers(0, 9), st.integers(0, 20), st.integers(0, 15), st.integers(0, 9)
)
def test_gradients_of_steps_without_an_update_are_not_counted(
    every: int, warmup: int, first: int, messages: int, seed: int
) -> None:
    updates = Updates(0.5, seed, 1)
    sent = Count(messages, 16, 5)
    sizes = [
        sent.size(place)
        for place, step in enumerate(range(first, first + messages))
        if (step < warmup or step % every == 0) and step in updates
    ]
    count = Returns(every, warmup, updates).count(first, sent)
    assert [count.size(message) for message in range(count.messages)] == sizes


def test_only_decoupled_runs_have_sparse_updates(bundle: Make) -> None:
    plan = load_bundle(sparse(bundle("mlp3", guard=True), 0.25)).plan
    for mode, expected in (("decoupled", 0.25), ("exact", 1.0), ("oracle", 1.0), ("stale", 1.0)):
        rows = crossings(plan, mode).interfaces  # type: ignore[arg-type]
        assert [row.update_probability for row in rows] == [expected] * 2
        fallbacks = {row.guard.fallback for row in rows if row.guard is not None}
        assert fallbacks == ({"none"} if mode == "decoupled" else set())


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "microbatches", "keys"),
    [
        ("mlp3", 4, {"window": 2, "warmup_steps": 4}),
        ("skip3", 1, {"window": 3, "message": "bfloat16"}),
        ("conv2", 2, {"window": 1, "return_every": 2, "warmup_steps": 3}),
        ("mlp3", 2, {"gradient": "local", "window": 2, "warmup_steps": 3}),
        ("mlp3", 1, {"gradient": "virtual", "window": 2, "warmup_steps": 2}),
    ],
)
def test_sparse_run_equals_reference(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    microbatches: int,
    keys: dict[str, Any],
    tmp_path: Path,
) -> None:
    folder = sparse(bundle(kind, **keys), 0.5)
    arguments = f"--record={tmp_path / 'record'}", f"--microbatches={microbatches}"
    run_ranks(folder, int(kind[-1]), *arguments)
    expected = reference(folder, microbatches=microbatches)
    assert same(read_record(tmp_path / "record"), expected.run())


@pytest.mark.processes
def test_sparse_run_resumes_bit_for_bit(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    """With a scheduler and clipping; all stages have the learning rate of the same step."""
    folder = sparse(bundle("mlp2", plan_keys={"train": SCHEDULED}), 0.4)
    run_ranks(folder, 2, f"--record={tmp_path / 'whole'}", f"--out={tmp_path / 'a'}")
    out = tmp_path / "b"
    run_ranks(folder, 2, "--epochs=1", f"--out={out}")
    run_ranks(folder, 2, f"--resume={out}", f"--out={out}", f"--record={tmp_path / 'rest'}")
    whole, rest = read_record(tmp_path / "whole"), read_record(tmp_path / "rest")
    assert same(Record(whole.losses[7:], whole.parameters, whole.heads), rest)
    assert same(whole, reference(folder).run())
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == pytest.approx([3e-3 * (1 / 3 + 2 / 3 * 7 / 9), 3e-3])


def test_a_stage_changes_in_its_own_steps_alone(bundle: Make, reference: Run) -> None:
    """Adam counts the updates; heads learn from gradients of the steps of the stage above."""
    made = reference(sparse(bundle("mlp3", window=2), 0.5))
    made.run()
    for index, stage in enumerate(made._stages):
        own = [step for step in range(14) if step in Updates(0.5, 3, index)]
        assert 0 < len(own) < 14
        counted = {int(state["step"]) for state in stage.optimizer.state.values()}
        assert counted == {len(own)}
        if index < 2:
            above = [step for step in range(14) if step in Updates(0.5, 3, index + 1)]
            assert [head._steps for head in stage.above[0].predictor._trainers] == [len(above)]


def test_every_step_has_the_bits_of_before(bundle: Make, reference: Run, same: Run) -> None:
    folder = bundle("mlp3", warmup_steps=3)
    expected = reference(folder).run()
    assert same(reference(sparse(folder, 1.0)).run(), expected)
    assert not same(reference(sparse(folder, 0.9)).run(), expected)


@pytest.mark.parametrize(
    ("probability", "gradient", "problem"),
    [
        (0, "synthetic", "update_probability cannot be 0"),
        (1.5, "synthetic", "update_probability cannot be 1.5"),
        (True, "synthetic", "update_probability cannot be True"),
        ("half", "synthetic", "update_probability cannot be 'half'"),
        (0.5, "exact", "cut01 waits for the gradient of every batch"),
        (0.5, "stale", "cut01 waits for the gradient of every batch"),
    ],
)
def test_what_cannot_be(bundle: Make, probability: object, gradient: str, problem: str) -> None:
    folder = sparse(bundle("mlp2"), probability, gradient)
    with pytest.raises(RuntimeFault, match=problem):
        load_bundle(folder)


def test_shared_parameters_are_updated_in_every_step(bundle: Make) -> None:
    row = {"name": "last.weight", "aliases": [], "owner": 0, "holders": [1], "nbytes": 640}
    with pytest.raises(RuntimeFault, match="share parameters"):
        load_bundle(sparse(bundle("mlp2"), 0.5, shared=[row]))
