"""Guards in real runs: the bits of the reference, resumed too, and a bad head that does no harm."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.record import read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

QUICK = {"check_every": 2, "patience": 1, "retry_after": 3}

# Heads that learn the gradient's opposite: what they predict is a good prediction, negated.
SABOTAGE = """
from dataclasses import replace

from dnic.runtime.head_training import HeadTrainer

honest = HeadTrainer.learn


def sabotaged(self, h, target, gradient):
    told = honest(self, h, target, -gradient)
    loss = told.loss + 4 * told.cosine * told.norm_ratio * told.zero
    return replace(told, cosine=-told.cosine, loss=loss)


HeadTrainer.learn = sabotaged
"""


def sabotaged(name: str, text: str) -> str:
    return (
        text.replace("\nimport model\n", f"{SABOTAGE}\nimport model\n") if "train" in name else text
    )


@pytest.fixture
def bad_heads() -> Iterator[None]:
    """Sabotages the heads of this process."""
    honest = HeadTrainer.learn
    exec(textwrap.dedent(SABOTAGE), {})
    yield
    HeadTrainer.learn = honest  # type: ignore[method-assign]


def turns_of(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """What the guards changed, over all epochs."""
    found: dict[str, list[dict[str, Any]]] = {}
    for line in (folder / "runs/decoupled/metrics.jsonl").read_text().splitlines():
        for name, row in json.loads(line)["interfaces"].items():
            found.setdefault(name, []).extend(row["turns"])
    return found


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "window", "microbatches", "keys"),
    [
        ("mlp2", 1, 1, {}),
        ("mlp2", 2, 2, {"message": "bfloat16"}),
        ("mlp3", 3, 1, {"warmup_steps": 3}),
        ("mlp3", 2, 4, {}),
        ("skip3", 2, 1, {}),
        ("conv2", 2, 1, {"return_every": 2}),
        ("mlp2", 2, 1, {"fallback": "none"}),
    ],
)
@pytest.mark.usefixtures("bad_heads")
def test_guarded_run_equals_reference(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    kind: str,
    window: int,
    microbatches: int,
    keys: dict[str, Any],
    tmp_path: Path,
) -> None:
    keys = dict(keys)
    guard = QUICK | ({"fallback": keys.pop("fallback")} if "fallback" in keys else {})
    folder = bundle(kind, window=window, guard=guard, edit=sabotaged, **keys)
    run_ranks(
        folder, int(kind[-1]), f"--record={tmp_path / 'record'}", f"--microbatches={microbatches}"
    )
    expected = reference(folder, microbatches=microbatches)
    assert same(read_record(tmp_path / "record"), expected.run())
    turns = turns_of(folder)
    print(turns)
    assert all(rows for rows in turns.values())
