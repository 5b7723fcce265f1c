"""What several tests of costs need: a cache folder of their own, captured models, small budgets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dnic.cost import DeviceProfile, MeasuredModel, load_profile
from dnic.cost.kept import KeptTimes
from dnic.graph.build import build_graph
from dnic.graph.graph import Graph
from dnic.trace import TracedModel, capture_fine


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "dnic"


@dataclass(frozen=True)
class Captured:
    """A model, captured."""

    model: nn.Module
    inputs: Any
    traced: TracedModel
    graph: Graph

    def measured(self, **changes: Any) -> MeasuredModel:
        """The measured model with little patience."""
        given: dict[str, Any] = {
            "profile": PROFILE,
            "traced": self.traced,
            "inputs": self.inputs,
            "budget_us": 300.0,
            "whole": False,
        }
        return MeasuredModel(**{**given, **changes})


PROFILE: DeviceProfile = load_profile("cpu-core")


def captured(model: nn.Module, *inputs: Tensor) -> Captured:
    torch.manual_seed(0)
    traced = capture_fine(model, inputs)
    return Captured(model, inputs, traced, build_graph(traced))


class Block(nn.Module):
    """A residual block that normalises, drops out, and overwrites."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.BatchNorm1d(width)
        self.act = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.act(self.norm(self.linear(x))))


@pytest.fixture
def blocks() -> Captured:
    """Three equal blocks and a head, 8 samples."""
    torch.manual_seed(0)
    model = nn.Sequential(*[Block(16) for _ in range(3)], nn.Linear(16, 4))
    return captured(model, torch.randn(8, 16))


@pytest.fixture
def kept(tmp_path: Path) -> Callable[[], KeptTimes]:
    """Opens one file of kept times anew."""
    return lambda: KeptTimes(path=tmp_path / "times.json")
