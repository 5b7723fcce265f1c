"""The command line of train.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dnic.errors import RuntimeFault
from dnic.runtime.bundle import Bundle, load_bundle
from dnic.runtime.options import parse_options


@pytest.fixture(name="loaded")
def _loaded(bundle: Callable[..., Path]) -> Bundle:
    return load_bundle(bundle("mlp2"))


def test_defaults_come_from_the_plan(loaded: Bundle) -> None:
    options = parse_options([], loaded)
    assert (options.epochs, options.mode, options.seed) == (2, "decoupled", None)
    assert options.out == loaded.folder / "runs" / "decoupled"
    assert options.evaluate
    assert options.checkpoint
    assert options.dropout
    assert parse_options(["--mode=exact"], loaded).out == loaded.folder / "runs" / "exact"


def test_switches(loaded: Bundle) -> None:
    arguments = ["--no-evaluate", "--no-checkpoint", "--no-dropout", "--max-steps=3", "--out=x"]
    options = parse_options(arguments, loaded)
    assert not (options.evaluate or options.checkpoint or options.dropout)
    assert (options.max_steps, options.out) == (3, Path("x"))


def test_what_overrules_the_plans_training(loaded: Bundle) -> None:
    options = parse_options([], loaded)
    assert (options.scheduler, options.precision) == (True, None)
    options = parse_options(["--no-scheduler", "--precision=bf16"], loaded)
    assert (options.scheduler, options.precision) == (False, "bf16")


def test_the_plan_says_the_mode_and_the_microbatches(bundle: Callable[..., Path]) -> None:
    def options(*arguments: str, **schedule: Any) -> tuple[str, int]:
        loaded = load_bundle(bundle("mlp2", plan_keys={"schedule": schedule}))
        read = parse_options(arguments, loaded)
        assert read.out.name == read.mode
        return read.mode, read.microbatches

    assert options(mode="1f1b", microbatches=8) == ("1f1b", 8)
    assert options("--microbatches=2", mode="1f1b", microbatches=8) == ("1f1b", 2)
    assert options("--mode=gpipe") == ("gpipe", 4)
    assert options("--mode=exact", mode="1f1b", microbatches=8) == ("exact", 1)
    assert options(mode="exact", microbatches=8) == ("exact", 8)
    assert options("--mode=decoupled", mode="exact", microbatches=8) == ("decoupled", 8)
    assert options("--microbatches=1", mode="exact", microbatches=8) == ("exact", 1)
    assert options("--mode=exact", "--microbatches=4") == ("exact", 4)
    assert options() == ("decoupled", 1)
    assert options("--mode=ddp", "--microbatches=3") == ("ddp", 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--mode=fast"],
        ["--epochs=-1"],
        ["--epochs=two"],
        ["--timeout=0"],
        ["--wat"],
        ["--seed"],
        ["--mode=gpipe", "--microbatches=0"],
        ["surplus"],
    ],
)
def test_mistakes_are_ours_to_report(loaded: Bundle, arguments: list[str]) -> None:
    with pytest.raises(RuntimeFault) as caught:
        parse_options(arguments, loaded)
    assert "train.py --help" in str(caught.value)
