"""Checkpoints load into the user's own model, in one process."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dnic.errors import RuntimeFault
from dnic.runtime.checkpoint import (
    _as_bytes,
    _from_bytes,
    _joined,
    _split,
    find_checkpoint,
    load_full_state_dict,
)
from dnic.runtime.record import read_record

Make = Callable[..., Path]
Run = Callable[..., Any]


@pytest.mark.processes
@pytest.mark.parametrize(("kind", "processes"), [("skip3", 3), ("mlp2", 2), ("conv2", 1)])
def test_full_state_dict_is_the_models_own(
    bundle: Make, run_ranks: Run, load_module: Run, kind: str, processes: int, tmp_path: Path
) -> None:
    folder = bundle(kind)
    mode = "backprop" if processes == 1 else "decoupled"
    run_ranks(folder, processes, f"--record={tmp_path / 'record'}", f"--mode={mode}")
    run = folder / "runs" / mode
    state = load_full_state_dict(run)
    model = load_module(folder / "model.py").build_model()
    model.load_state_dict(state, strict=True)
    expected = read_record(tmp_path / "record").parameters
    assert state.keys() == expected.keys()
    assert all(torch.equal(state[name], expected[name]) for name in state)
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == [
        "epoch-0001",
        "epoch-0002",
    ]
    first = load_full_state_dict(run / "checkpoints" / "epoch-0001")
    assert any(not torch.equal(first[name], state[name]) for name in state)


@pytest.mark.processes
def test_resuming_what_does_not_fit(bundle: Make, run_ranks: Run) -> None:
    folder = bundle("mlp2")
    run_ranks(folder, 2, "--epochs=1")
    checkpoint = find_checkpoint(folder / "runs" / "decoupled")
    status = json.loads((checkpoint / "dnic.json").read_text())
    (checkpoint / "dnic.json").write_text(json.dumps(status | {"plan": "another"}))
    out = folder / "again"
    assert run_ranks(folder, 2, f"--resume={checkpoint}", f"--out={out}", fails=True) == [2, 2]
    assert "of another bundle" in json.loads((out / "failure.json").read_text())["message"]
    shutil.rmtree(out)
    run_ranks(folder, 2, f"--resume={folder / 'nowhere'}", f"--out={out}", fails=True)
    assert "no checkpoint here" in json.loads((out / "failure.json").read_text())["message"]


@pytest.mark.processes
def test_backprop_resumes_bit_for_bit(
    bundle: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    folder = bundle("mlp2")
    arguments = ("--mode=backprop", f"--out={tmp_path / 'run'}")
    run_ranks(folder, 1, "--epochs=2", *arguments, f"--record={tmp_path / 'whole'}")
    run_ranks(folder, 1, "--epochs=1", *arguments)
    resume = f"--resume={tmp_path / 'run' / 'checkpoints' / 'epoch-0001'}"
    run_ranks(folder, 1, "--epochs=2", *arguments, resume, f"--record={tmp_path / 'rest'}")
    whole, rest = read_record(tmp_path / "whole"), read_record(tmp_path / "rest")
    assert rest.losses == whole.losses[7:]
    assert all(torch.equal(rest.parameters[n], whole.parameters[n]) for n in whole.parameters)


def test_no_checkpoint(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(RuntimeFault, match="no checkpoint here"):
            load_full_state_dict(folder)
    (tmp_path / "dnic.json").write_text("{")
    with pytest.raises(RuntimeFault, match="cannot be read"):
        load_full_state_dict(tmp_path)
    status = {"epoch": 1, "step": 1, "mode": "exact", "seed": 0, "processes": 1}
    (tmp_path / "dnic.json").write_text(json.dumps({**status, "plan": "", "tied": {}}))
    with pytest.raises(RuntimeFault, match="damaged"):
        load_full_state_dict(tmp_path)


def test_any_state_survives_splitting() -> None:
    tree = {
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}, 1: {}}, "groups": [{"lr": 0.1}]},
        "random": ("MT", torch.arange(3), 5, None, 0.5),
        "empty": [],
    }
    tensors: dict[str, torch.Tensor] = {"other": torch.zeros(1)}
    skeleton = _from_bytes(_as_bytes(_split(tree, "stage0.", tensors)))
    assert set(tensors) == {"other", "stage0.1", "stage0.2"}
    back = _joined(skeleton, tensors)
    assert back["optimizer"]["state"][0]["step"] == 3
    assert back["optimizer"]["groups"] == [{"lr": 0.1}]
    assert back["random"][0] == "MT"
    assert torch.equal(back["random"][1], torch.arange(3))
    assert back["empty"] == []
