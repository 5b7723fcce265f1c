"""Stages of several replicas compute what one process computes, and stay copies of one another."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dnic.runtime.checkpoint import load_full_state_dict
from dnic.runtime.record import Record, read_record

pytestmark = pytest.mark.processes

Make = Callable[..., Path]
Run = Callable[..., Any]

# AdamW divides by the size of a gradient and so makes much of a rounding difference.
SGD = {"name": "SGD", "options": {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-3}}
TRAIN = {"batch_size": 16, "epochs": 2, "seed": 3, "optimizer": SGD}


def keys(**schedule: Any) -> dict[str, Any]:
    """The keys of a plan with two replicas of each stage."""
    train = TRAIN | schedule.pop("train", {})
    return {"train": train, "schedule": {"replicas": 2, **schedule}}


def samples(number: int) -> Callable[[str, str], str]:
    return lambda name, text: text.replace("_data(100, 1)", f"_data({number}, 1)")


def assert_near(run: Record, other: Record, **tolerance: float) -> None:
    near = {"rtol": 1e-5, "atol": 1e-6} | tolerance
    torch.testing.assert_close(run.losses, other.losses, **near)
    assert run.parameters.keys() == other.parameters.keys()
    torch.testing.assert_close(run.parameters, other.parameters, **near)


def assert_copies(folder: Path, *, heads: int = 0) -> None:
    """The replicas of both stages hold the same bits."""
    for first, copy in ((0, 1), (2, 3)):
        own = torch.load(folder / f"rank{first}.pt", weights_only=True)
        other = torch.load(folder / f"copy{copy}.pt", weights_only=True)
        for part in ("parameters", "heads"):
            assert own[part].keys() == other[part].keys()
            assert all(torch.equal(own[part][name], other[part][name]) for name in own[part])
        assert own["parameters"]
        assert len(own["heads"]) == (heads if first == 0 else 0)


@pytest.mark.parametrize("shard", [False, True])
@pytest.mark.parametrize(
    ("number", "microbatches"),
    [
        pytest.param(97, 1, id="a replica without a sample"),
        pytest.param(99, 2, id="microbatches, a batch that does not divide"),
    ],
)
def test_exact_replicas_train_as_backprop(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    tmp_path: Path,
    number: int,
    microbatches: int,
    shard: bool,
) -> None:
    schedule = {"mode": "exact", "microbatches": microbatches, "shard": shard}
    folder = bundle("mlp2", edit=samples(number), plan_keys=keys(**schedule))
    run_ranks(folder, 4, "--no-dropout", f"--record={tmp_path / 'run'}", f"--out={tmp_path}")
    run = read_record(tmp_path / "run")
    assert len(run.losses) == 14
    assert_near(run, reference(folder, mode="exact", dropout=False).run())
    assert_copies(tmp_path / "run")
    saved = load_full_state_dict(tmp_path)
    assert saved.keys() == run.parameters.keys()
    assert all(torch.equal(saved[name], run.parameters[name]) for name in saved)
