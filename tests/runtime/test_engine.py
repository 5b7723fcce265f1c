"""The engine computes what the single-process reference computes, bit for bit, at any timing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnic.runtime.record import read_record

SLEEP = "import random, time; time.sleep(0.03 * random.SystemRandom().random() ** 3)"

pytestmark = pytest.mark.processes


def slow(stage: int) -> Callable[[str, str], str]:
    """Makes one stage's forward take a random time, from a generator that nothing else uses."""

    def edit(name: str, text: str) -> str:
        if name != "stages.py":
            return text
        before, after = text.split(f"class Stage{stage}(")
        signature, body = after.split("-> Tensor:\n", 1)
        return f"{before}class Stage{stage}({signature}-> Tensor:\n        {SLEEP}\n{body}"

    return edit


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize(
    ("kind", "slow_stage"),
    [("mlp2", 0), ("mlp2", 1), ("mlp3", 1), ("mlp3", 2), ("conv2", 1), ("skip3", 1)],
)
def test_decoupled_equals_reference(
    bundle: Callable[..., Path],
    run_ranks: Callable[..., Any],
    reference: Callable[..., Any],
    same: Callable[..., bool],
    kind: str,
    slow_stage: int,
    window: int,
    tmp_path: Path,
) -> None:
    folder = bundle(kind, window=window, warmup_steps=3, edit=slow(slow_stage))
    processes = 2 if kind.endswith("2") else 3
    assert run_ranks(folder, processes, f"--record={tmp_path / 'record'}").good
    expected = reference(folder).run()
    assert len(expected.losses) == 14
    assert same(read_record(tmp_path / "record"), expected)
