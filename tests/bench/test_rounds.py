"""A whole bench of a compiled bundle; what is left out; what the command line refuses."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from dnic.bench.linkspec import LinkSpec
from dnic.bench.measured import Measured
from dnic.bench.rounds import _rounds, bench
from dnic.bench.variant import Variant
from dnic.cli import app
from dnic.compiler import compile_model
from dnic.errors import DnicError
from dnic.report import bench_table
from dnic.runtime.launch import RankFault
from dnic.spec import spec_from_mapping

MODEL = """
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import TensorDataset


def build_model():
    return nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 32), nn.Linear(32, 5))


def example_inputs():
    return (torch.randn(16, 12),)


def loss(output, target):
    return cross_entropy(output, target)


def train_data():
    return TensorDataset(torch.randn(480, 12), torch.randint(5, (480,)))
"""
FIGURES = Measured(100.0, 100.0, 100.0, (1e4,), ({},), (1,), None, None, 10)


@pytest.fixture
def compiled(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(MODEL)
    spec = spec_from_mapping(
        {
            "model": {"file": str(tmp_path / "net.py")},
            "train": {"batch_size": 16, "epochs": 1},
            "devices": {"count": 2, "profile": "cpu-core"},
            "partition": {"cuts": ["1"], "schedule": "decoupled"},
            "interfaces": {"default": {"gradient": "synthetic", "window": 2, "warmup_steps": 200}},
        },
        "the test",
    )
    compile_model(spec, tmp_path / "bundle")
    return tmp_path / "bundle"


@pytest.mark.processes
def test_a_bench(compiled: Path, tmp_path: Path) -> None:
    said: list[str] = []
    trace = tmp_path / "trace.json"
    result = bench(
        compiled, families=("backprop", "decoupled", "ceiling"), rounds=1, seconds=0.05,
        trace=trace, progress=said.append,
    )  # fmt: skip
    json.dumps(result, allow_nan=False)
    assert said == ["a first run", *(f"round 1 of 1: {v['name']}" for v in result["variants"])]
    by = {v["name"]: v for v in result["variants"]}
    assert list(by) == ["backprop", "decoupled", "ceiling"] and result["left_out"] == []
    assert by["backprop"]["ratio_to_one_core"] == 1.0 == by["ceiling"]["ratio_to_ceiling"]
    for v in by.values():
        assert v["samples_per_s"] > 0 and len(v["rounds"]) == 1
        assert len(v["parts_us"]) == len(v["memory_bytes"]) == v["processes"]
        mean_us = [sum(parts.values()) for parts in v["parts_us"]]
        assert mean_us == pytest.approx(v["step_us"], rel=1e-3)
    decoupled = by["decoupled"]
    assert decoupled["samples_per_s"] == pytest.approx(16e6 / max(decoupled["step_us"]))
    # 16 x 32 float32 there and back, 16 targets of int64 there.
    assert decoupled["wire_bytes_per_step"] == 2 * 16 * 32 * 4 + 16 * 8
    assert "learn" in decoupled["parts_us"][0] and decoupled["in_flight_bytes"] is not None
    assert by["ceiling"]["wire_bytes_per_step"] == 0
    names = [
        e["args"]["name"] for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "M"
    ]
    assert {"backprop", "decoupled", "ceiling", "decoupled, predicted"} <= set(names)
    console = Console(width=80)
    with console.capture() as capture:
        console.print(bench_table(result))
    assert "decoupled" in capture.get()
    assert not (compiled / "runs").exists()


class Broken:
    """A laboratory in which some ways fail."""

    def __init__(self, *failing: str) -> None:
        self.failing = failing
        self.ran: list[str] = []

    def warm_up(self) -> None:
        self.ran.append("first")

    def run(self, variant: Variant, trace: Path | None = None) -> Measured:
        self.ran.append(variant.name if trace is None else f"{variant.name}, traced")
        if variant.name in self.failing:
            report = "Traceback (most recent call last):\n  ...\nValueError: no such thing\n"
            raise RankFault("rank 1 failed", rank=1, report=report, exit_status=1)
        return FIGURES


def ways(*names: str) -> list[Variant]:
    return [Variant(name, name, "exact", 2) for name in names]


def test_rounds_take_turns_and_what_fails_is_left_out() -> None:
    room: Any = Broken("ddp")
    ignored: Callable[[str], None] = lambda what: None  # noqa: E731
    found = ways("backprop", "ddp", "naive")
    done, failed = _rounds(room, found, 2, Path("laps"), ignored)
    turns = ["backprop", "ddp", "naive", "backprop, traced", "naive, traced"]
    assert room.ran == ["first", *turns]
    assert done == {"backprop": [FIGURES] * 2, "naive": [FIGURES] * 2}
    assert [(f.name, f.reason) for f in failed] == [("ddp", "it failed: ValueError: no such thing")]
    with pytest.raises(RankFault):
        _rounds(Broken("backprop"), found, 2, None, ignored)  # type: ignore[arg-type]


def test_microbatches_that_do_not_pay_are_run_once() -> None:
    speeds = {"backprop": 10.0, "gpipe-2": 70.0, "gpipe-4": 50.0, "exact-2": 89.0, "exact-4": 100.0}

    class Room(Broken):
        def run(self, variant: Variant, trace: Path | None = None) -> Measured:
            super().run(variant, trace)
            return replace(FIGURES, samples_per_s=speeds[variant.name])

    found = [Variant(name, name.partition("-")[0], "exact", 2) for name in speeds]
    for rounds, again in ((3, {"backprop", "gpipe-2", "exact-4"}), (2, set(speeds))):
        done, failed = _rounds(Room(), found, rounds, None, lambda what: None)  # type: ignore[arg-type]
        assert {name: len(runs) for name, runs in done.items()} == {
            name: rounds if name in again else 1 for name in speeds
        }
        assert not failed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--link", "delay=20"], "delay cannot be '20'"),
        (["--against", "pipedream"], "no way to train called 'pipedream'"),
        (["--microbatches", "0"], "no list of microbatches"),
        ([], "this folder is not a bundle"),
    ],
)
def test_what_the_command_refuses(options: list[str], words: str, tmp_path: Path) -> None:
    ended = CliRunner().invoke(app, ["bench", str(tmp_path), *options])
    assert isinstance(ended.exception, DnicError)
    assert words in str(ended.exception)


def test_a_trace_needs_its_folder_before_anything_runs(compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(DnicError, match="there is no folder"):
        bench(compiled, link=LinkSpec(), trace=tmp_path / "nowhere" / "trace.json")
