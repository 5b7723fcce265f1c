"""Kinds of predictors by name: dnic's, those of packages, one's own; and what is told of others."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from dnic.errors import RuntimeFault
from dnic.runtime import registry
from dnic.runtime.plan import HeadPlan, TensorSpec
from dnic.runtime.predictor import Predictor
from dnic.runtime.predictors.nothing import Nothing
from dnic.runtime.registry import (
    PredictorKind,
    PredictorRequest,
    predictor_kind,
    predictor_names,
    register,
)

REQUEST = PredictorRequest((TensorSpec("h", ("B", 4), "float32", True),))

PACKAGE = """
from dnic.runtime.predictors.nothing import Nothing


class Theirs(Nothing):
    needs_gradients = True
"""


@pytest.fixture(autouse=True)
def nothing_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it; modules that register are imported once."""
    for name in registry.BUILT_IN:
        predictor_kind(name)
    monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))


@pytest.mark.parametrize(
    ("name", "gradients", "target"),
    [
        ("synthetic", True, False),
        ("virtual", True, True),
        ("local", False, True),
        ("none", False, False),
    ],
)
def test_what_dnic_brings(name: str, gradients: bool, target: bool) -> None:
    kind = predictor_kind(name)
    assert (kind.name, kind.needs_gradients, kind.needs_target) == (name, gradients, target)
    assert name in predictor_names()


def test_one_of_ones_own() -> None:
    @register("mine", options={"size": 2.0})
    class Mine(Nothing):
        needs_gradients: ClassVar[bool] = True
        warms_up: ClassVar[bool] = False

    kind = predictor_kind("mine")
    assert (kind.needs_gradients, kind.needs_target, kind.replicated) == (True, False, True)
    assert not kind.warms_up
    assert isinstance(kind.build(REQUEST), Mine)
    assert kind.options_of(HeadPlan()) == {"size": 2.0}
    assert kind.options_of(HeadPlan(options={"size": 3.0})) == {"size": 3.0}
    with pytest.raises(RuntimeFault, match="the gradient source mine has no option 'siez'") as told:
        kind.options_of(HeadPlan(options={"siez": 3.0}))
    assert told.value.hint == "size"
    assert "mine" in predictor_names()


def test_a_function_may_build_one() -> None:
    @register("built", needs_gradients=False)
    def build(request: PredictorRequest) -> Predictor:
        return Nothing(request)

    assert predictor_kind("built").needs_gradients is False
    assert predictor_kind("built").needs_target is True
    assert predictor_kind("built").warms_up is True
    assert predictor_kind("built").replicated is False
    register("built", replicated=True)(build)
    assert predictor_kind("built").replicated is True


@pytest.mark.parametrize("name", ["exact", "stale", "auto", "two words", ""])
def test_names_that_cannot_be(name: str) -> None:
    with pytest.raises(RuntimeFault, match="no gradient source can be called"):
        register(name)(Nothing)


def test_dnics_own_stay_dnics_own() -> None:
    with pytest.raises(RuntimeFault, match="the gradient source virtual is dnic's own"):

        @register("virtual")
        class Theirs(Nothing):
            __module__ = "elsewhere"


@pytest.mark.parametrize(
    ("name", "hint"), [("sinthetic", "synthetic?"), ("lokal", "local?"), ("zzz", "model file")]
)
def test_a_name_that_nobody_knows(name: str, hint: str) -> None:
    with pytest.raises(RuntimeFault, match=f"there is no gradient source '{name}'") as told:
        predictor_kind(name)
    assert hint in str(told.value)
    assert "virtual" in str(told.value.expected)
    assert "stale" in str(told.value.expected)


def installed(folder: Path, entry: str) -> None:
    """A package as pip leaves it: a module, and the entry points of its metadata."""
    (folder / "their_sources.py").write_text(PACKAGE)
    info = folder / "their_sources-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their_sources\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{registry.ENTRY_POINTS}]\n{entry}\n")


def test_a_package_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "theirs = their_sources:Theirs")
    monkeypatch.syspath_prepend(tmp_path)
    assert "theirs" in predictor_names()
    kind = predictor_kind("theirs")
    assert isinstance(kind, PredictorKind)
    assert kind.needs_gradients is True
    predicted = kind.build(REQUEST).predict([torch.ones(2, 4)], torch.zeros(2), 1)
    assert torch.equal(predicted[0], torch.zeros(2, 4))
    monkeypatch.delitem(sys.modules, "their_sources")


def test_a_package_that_is_broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(tmp_path, "broken = their_sources:Missing")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(RuntimeFault, match="the gradient source broken cannot be imported") as told:
        predictor_kind("broken")
    assert told.value.where == "their_sources:Missing"
    sys.modules.pop("their_sources", None)


@pytest.mark.processes
def test_a_run_names_the_nearest(
    bundle: Callable[..., Path], run_ranks: Callable[..., Any]
) -> None:
    folder = bundle("mlp2", gradient="virtuel")
    run_ranks(folder, 2, f"--out={folder / 'run'}", fails=True)
    failure = (folder / "run" / "failure.json").read_text()
    assert "there is no gradient source 'virtuel'" in failure
