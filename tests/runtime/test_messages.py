"""Messages in bfloat16, and gradients of every k-th batch: the bits of the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import load_bundle
from dnic.runtime.record import Record, read_record

Make = Callable[..., Path]
Run = Callable[..., Any]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("kind", "window", "keys"),
    [
        ("mlp2", 1, {}),
        ("skip3", 2, {"warmup_steps": 3}),
        ("conv2", 2, {"return_every": 2}),
        ("mlp3", 1, {"gradient": "exact"}),
    ],
)
def test_bfloat16_equals_reference(
    bundle: Make, as_reference: Run, reference: Run, kind: str, window: int, keys: dict[str, Any]
) -> None:
    folder = bundle(kind, window=window, message="bfloat16", **keys)
    expected = as_reference(folder, int(kind[-1]))
    text = (folder / "plan.yaml").read_text()
    (folder / "plan.yaml").write_text(text.replace("message: bfloat16", "message: float32"))
    assert reference(folder).run().losses != expected.losses, "rounding must matter"


def test_exact_mode_sends_what_backpropagation_has(bundle: Make, reference: Run, same: Run) -> None:
    folder = bundle("mlp2", message="bfloat16", return_every=2)
    records = [reference(folder, mode=mode).run() for mode in ("exact", "oracle")]
    text = (folder / "plan.yaml").read_text()
    (folder / "plan.yaml").write_text(text.replace("message: bfloat16", "message: float32"))
    plain = reference(folder, mode="exact").run()
    assert all(same(Record(r.losses, r.parameters, {}), plain) for r in records)


@pytest.mark.processes
@pytest.mark.parametrize(("every", "window"), [(2, 1), (3, 2), (3, 4)])
def test_every_kth_gradient_equals_reference(
    bundle: Make,
    run_ranks: Run,
    reference: Run,
    same: Run,
    every: int,
    window: int,
    tmp_path: Path,
) -> None:
    """Epochs of seven steps, so that each begins at another place in the rhythm."""
    folder = bundle("mlp3", window=window, return_every=every, warmup_steps=3)
    run_ranks(folder, 3, "--epochs=3", f"--record={tmp_path / 'record'}")
    expected = reference(folder).run(epochs=3)
    assert same(read_record(tmp_path / "record"), expected)
    result = json.loads((folder / "runs/decoupled/result.json").read_text())
    assert [row["lateness_max"] for row in result["interfaces"].values()] == [window] * 2


@pytest.mark.processes
def test_learning_from_a_part_of_each_batch_equals_reference(
    bundle: Make, run_ranks: Run, reference: Run, same: Run, tmp_path: Path
) -> None:
    whole = reference(bundle("conv2", window=2)).run()
    head = {"hidden_layers": 1, "width": 8, "context": "target", "lr": 1e-3, "one_in": 3}
    folder = bundle("conv2", window=2, head=head)
    run_ranks(folder, 2, f"--record={tmp_path / 'record'}")
    expected = reference(folder).run()
    assert same(read_record(tmp_path / "record"), expected)
    assert expected.losses != whole.losses, "the part must matter"


@pytest.mark.processes
def test_every_kth_gradient_resumes_bit_for_bit(
    bundle: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    folder = bundle("mlp2", return_every=3, message="bfloat16", warmup_steps=2)
    run_ranks(folder, 2, "--epochs=3", f"--record={tmp_path / 'whole'}", f"--out={tmp_path / 'a'}")
    out = tmp_path / "b"
    run_ranks(folder, 2, "--epochs=1", f"--out={out}")
    record = tmp_path / "rest"
    run_ranks(folder, 2, "--epochs=3", f"--resume={out}", f"--out={out}", f"--record={record}")
    whole, rest = read_record(tmp_path / "whole"), read_record(record)
    assert same(Record(whole.losses[7:], whole.parameters, whole.heads), rest)


def test_heads_learn_from_what_comes_back(bundle: Make, reference: Run) -> None:
    """Steps of Adam are counted: 14 batches, of which 0, 1 warm up and 3, 6, 9, 12 come back."""
    folder = bundle("mlp2", return_every=3, warmup_steps=2)
    made = reference(folder)
    made.run()
    (interface,) = made._stages[0].above
    assert [head._steps for head in interface.predictor._trainers] == [6]


@pytest.mark.parametrize(
    ("keys", "problem"),
    [
        ({"message": "fp16"}, "message 'fp16' is not known"),
        ({"return_every": -1}, "return_every -1 is too small"),
        ({"return_every": 2, "gradient": "exact"}, "return_every 2 where the gradient is exact"),
        ({"return_every": 2, "gradient": "stale"}, "return_every 2 where the gradient is stale"),
        ({"head": {"hidden_layers": 1, "width": 4, "one_in": 0}}, "one_in 0 is too small"),
        ({"gradient": "auto"}, "gradient 'auto' is not known"),
        ({"predict_weights": True}, "predict_weights where the gradient is synthetic"),
    ],
)
def test_edits_that_cannot_be(bundle: Make, keys: dict[str, Any], problem: str) -> None:
    folder = bundle("mlp2")
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    plan["interfaces"][0].update(keys)
    (folder / "plan.yaml").write_text(yaml.safe_dump(plan))
    with pytest.raises(RuntimeFault, match=problem):
        load_bundle(folder)
