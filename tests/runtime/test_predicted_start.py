"""Late gradients that begin with a predictor: the engine, the reference, what comes back, edits."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import read_plan
from dnic.runtime.crossing import Returns, crossings, warmup_steps
from dnic.runtime.links import Count
from dnic.runtime.metrics import METRICS_FILE, read_metrics
from dnic.runtime.record import Record, read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

STEPS = 7  # in an epoch of these bundles
BEGUN: dict[str, Any] = {"gradient": "stale", "warmup": "local", "predict_weights": True}


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "window", "keys"),
    [
        ("mlp2", 2, {"warmup_steps": "auto"}),
        ("mlp3", 1, {"warmup_steps": 3}),
        ("conv2", 2, {"warmup_steps": 9, "head": {"train_every": 2}}),
        ("skip3", 1, {"warmup_steps": 4, "predict_weights": False}),
    ],
)
def test_equals_reference(
    bundle: Make, as_reference: Run, kind: str, window: int, keys: dict[str, Any]
) -> None:
    """Late from the middle of an epoch on, or from its beginning."""
    assert as_reference(bundle(kind, window=window, **(BEGUN | keys)), int(kind[-1])).heads


@pytest.mark.processes
@pytest.mark.parametrize("kept", [0, 1])
def test_beside_one_that_begins_in_time(bundle: Make, as_reference: Run, kept: int) -> None:
    """Lateness begins with the first that has warmed up; the other predicts for longer."""
    folder = bundle("mlp3", window=1, **BEGUN, warmup_steps=6)
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["interfaces"][kept] |= {"warmup": "exact", "warmup_steps": 3}
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    record = as_reference(folder, 3)
    assert {name.split(".")[0] for name in record.heads} == {("cut01", "cut12")[1 - kept]}


@pytest.mark.processes
def test_nothing_comes_back_before_it_is_late(bundle: Make, run_ranks: Run) -> None:
    folder = bundle("mlp2", window=2, **BEGUN, warmup_steps="auto")
    out = folder / "run"
    run_ranks(folder, 2, f"--out={out}")
    first, second = read_metrics(out / METRICS_FILE)
    assert first["sent_bytes"][1] == 0 < second["sent_bytes"][1]
    before, after = (row["interfaces"]["cut01"] for row in (first, second))
    assert before["lateness"] is None and after["lateness_max"] == 2


def test_it_is_the_local_loss_until_it_is_late(bundle: Make, reference: Run, same: Run) -> None:
    """As many steps of a run of either kind, so that nothing else differs."""
    local = reference(bundle("mlp3", gradient="local", return_every=0)).run(max_steps=4)
    folder = bundle("mlp3", **BEGUN, warmup_steps=4)
    assert same(reference(folder).run(max_steps=4), local)
    longer = reference(folder).run()
    assert longer.losses[:4] == local.losses
    assert longer.losses[5:] != reference(bundle("mlp3", gradient="local")).run().losses[5:]


def test_heads_rest_once_it_is_late(bundle: Make, reference: Run) -> None:
    folder = bundle("mlp2", window=2, **BEGUN, warmup_steps=5)
    early, late = (reference(folder).run(max_steps=steps).heads for steps in (5, 12))
    assert all(torch.equal(early[name], late[name]) for name in early)


@pytest.mark.processes
@pytest.mark.parametrize("warmup_steps", [5, 16])
def test_resumes_bit_for_bit(
    bundle: Make, run_ranks: Run, same: Run, warmup_steps: int, tmp_path: Path
) -> None:
    """After an epoch, before or after it has become late."""
    folder, out = bundle("mlp3", **BEGUN, warmup_steps=warmup_steps), tmp_path / "run"
    run_ranks(folder, 3, "--epochs=3", f"--record={tmp_path / 'whole'}")
    run_ranks(folder, 3, "--epochs=1", f"--out={out}")
    run_ranks(folder, 3, "--epochs=3", f"--resume={out}", f"--record={tmp_path / 'resumed'}")
    whole, resumed = (read_record(tmp_path / name) for name in ("whole", "resumed"))
    assert same(resumed, Record(whole.losses[STEPS:], whole.parameters, whole.heads))


def test_half_of_a_run_by_itself(bundle: Make) -> None:
    plan = read_plan(bundle("mlp2", **BEGUN, warmup_steps="auto") / "plan.yaml")
    crossed = crossings(plan, "decoupled")
    (interface,) = crossed.interfaces
    assert warmup_steps(interface, 100_000) == 50_000
    assert crossed.in_time(100_000) == 50_000
    # Everywhere else its gradient comes in time.
    assert crossings(plan, "exact").interfaces[0].warmup == "exact"


def test_what_returns_is_counted_from_the_first() -> None:
    returns, sent = Returns(first=5), Count(7, 16, 9)
    assert [step in returns for step in (4, 5, 6)] == [False, True, True]
    assert returns.count(0, sent) == Count(2, 16, 9)
    assert returns.count(7, sent) == sent
    assert Returns(first=7).count(0, sent).messages == 0


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"warmup": "synthetic"}, "warmup cannot be 'synthetic'"),
        ({"warmup": "stale"}, "warmup cannot be 'stale'"),
        ({"warmup": "no name"}, "warmup cannot be 'no name'"),
        ({"gradient": "local"}, "warmup 'local' where the gradient is local"),
    ],
)
def test_edits_that_cannot_be(bundle: Make, keys: dict[str, Any], words: str) -> None:
    folder = bundle("mlp2", **(BEGUN | {"predict_weights": False} | keys))
    with pytest.raises(RuntimeFault, match=words):
        read_plan(folder / "plan.yaml")
