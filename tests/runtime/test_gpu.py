"""Runs on GPUs. Nothing here has run yet: the machines of this project have none."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dnic.runtime.record import Record, read_record

Make = Callable[..., Path]
Run = Callable[..., Any]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.processes,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

# torch refuses what waits for the device, in every step but the first.
STRICT = """
import torch

from dnic.runtime.engine import Engine

STEP = Engine._step


def strict(self, *args):
    torch.cuda.set_sync_debug_mode("error" if self.step else "default")
    try:
        return STEP(self, *args)
    finally:
        torch.cuda.set_sync_debug_mode("default")


Engine._step = strict

"""


# Adam makes much of rounding where a gradient is nearly zero.
SGD = {"name": "SGD", "options": {"lr": 0.05, "momentum": 0.9}}
PLAIN = {"train": {"batch_size": 16, "epochs": 2, "seed": 3, "optimizer": SGD}}


def last_row(folder: Path) -> dict[str, Any]:
    row: dict[str, Any] = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    return row


def assert_close(record: Record, expected: Record) -> None:
    torch.testing.assert_close(record.losses, expected.losses, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(record.parameters, expected.parameters, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("transport", ["auto", "gloo"])
@pytest.mark.parametrize("kind", ["mlp2", "conv2"])
def test_exact_is_backprop(
    bundle: Make, run_ranks: Run, kind: str, transport: str, tmp_path: Path
) -> None:
    folder = bundle(kind, plan_keys=PLAIN)
    records = {}
    for mode, ranks in (("exact", 2), ("backprop", 1)):
        run_ranks(
            folder,
            ranks,
            "--device=cuda",
            f"--mode={mode}",
            "--no-dropout",
            f"--record={tmp_path / mode}",
            variables={"DNIC_TRANSPORT": transport},
        )
        records[mode] = read_record(tmp_path / mode)
    assert_close(records["exact"], records["backprop"])


@pytest.mark.parametrize("window", [1, 2, 4])
@pytest.mark.parametrize("microbatches", [1, 4])
def test_decoupled_is_the_reference(
    bundle: Make, run_ranks: Run, reference: Run, window: int, microbatches: int, tmp_path: Path
) -> None:
    folder = bundle("mlp2", window=window, warmup_steps=3, plan_keys=PLAIN)
    cut = f"--microbatches={microbatches}"
    run_ranks(folder, 2, "--device=cuda", "--no-dropout", cut, f"--record={tmp_path / 'record'}")
    expected = reference(folder, dropout=False, microbatches=microbatches).run()
    assert_close(read_record(tmp_path / "record"), expected)


def test_the_same_bits_by_nccl_and_by_gloo_and_again(
    bundle: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    folder = bundle("mlp2")
    for name, transport in (("first", "auto"), ("second", "auto"), ("gloo", "gloo")):
        variables = {"DNIC_TRANSPORT": transport}
        record = f"--record={tmp_path / name}"
        run_ranks(folder, 2, "--device=cuda", record, variables=variables)
    first = read_record(tmp_path / "first")
    assert same(first, read_record(tmp_path / "second"))
    assert same(first, read_record(tmp_path / "gloo"))


def test_no_step_waits_for_the_device(bundle: Make, run_ranks: Run) -> None:
    train = PLAIN["train"] | {"clip_norm": 1.0}

    def edit(name: str, text: str) -> str:
        return STRICT + text if name == "train.py" else text

    run_ranks(bundle("mlp2", plan_keys={"train": train}, edit=edit), 2, "--device=cuda")


def test_figures_are_the_devices(bundle: Make, run_ranks: Run, tmp_path: Path) -> None:
    run_ranks(bundle("conv2"), 2, "--device=cuda", f"--out={tmp_path / 'run'}")
    row = last_row(tmp_path / "run")
    for rank in range(2):
        assert 0 < row["memory_bytes"][rank] < 2**30
        assert sum(row["parts_us"][rank].values()) == pytest.approx(
            row["rank_step_us"][rank]["mean"], rel=1e-3
        )
        assert 0 <= row["waited_share"][rank] <= 1


def test_resumed_with_dropout_has_the_same_bits(
    bundle: Make, run_ranks: Run, same: Run, tmp_path: Path
) -> None:
    """So the state of the GPU's random numbers is in checkpoints."""
    folder = bundle("mlp2")
    whole, run, end = (tmp_path / name for name in ("whole", "run", "end"))
    run_ranks(folder, 2, "--device=cuda", f"--record={whole}")
    run_ranks(folder, 2, "--device=cuda", "--epochs=1", f"--out={run}")
    run_ranks(folder, 2, "--device=cuda", f"--resume={run}", f"--record={end}")
    before, after = read_record(whole), read_record(end)
    assert same(Record(before.losses[-len(after.losses) :], before.parameters, before.heads), after)


@pytest.mark.parametrize("mode", ["gpipe", "1f1b", "ddp"])
def test_torchs_own_ways_to_train(bundle: Make, run_ranks: Run, mode: str, tmp_path: Path) -> None:
    folder = bundle("mlp2", plan_keys=PLAIN)
    records = {}
    for name, ranks in ((mode, 2), ("backprop", 1)):
        record = f"--record={tmp_path / name}"
        run_ranks(folder, ranks, "--device=cuda", f"--mode={name}", "--no-dropout", record)
        records[name] = read_record(tmp_path / name)
    assert_close(records[mode], records["backprop"])


def test_two_ranks_on_one_gpu(bundle: Make, run_ranks: Run) -> None:
    folder = bundle("mlp2")
    one = {"CUDA_VISIBLE_DEVICES": "0"}
    # The first one holds the store: when it is gone, the other may not have looked yet.
    assert run_ranks(folder, 2, "--device=cuda", fails=True, variables=one)[0] == 2
    run_ranks(folder, 2, "--device=cuda", variables=one | {"DNIC_TRANSPORT": "gloo"})
