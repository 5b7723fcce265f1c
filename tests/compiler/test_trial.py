"""What only a run would meet is refused when a bundle is compiled."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dnic.compiler import compile_model
from dnic.compiler.ask import check_sources
from dnic.errors import PartitionError, SpecError
from dnic.runtime import registry
from dnic.runtime.predictors.nothing import Nothing
from dnic.runtime.registry import PredictorRequest, predictor_kind, register
from dnic.spec import spec_from_mapping

MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset


def build_model():
    torch.manual_seed(0)
    first, last = nn.Linear(8, 16), nn.Linear(16, 5)
    return nn.Sequential(first, nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), last)


def example_inputs():
    return (torch.randn(4, 8),)


def loss(output, target):
    return nn.functional.cross_entropy(output, target)


def train_data():
    return TensorDataset(torch.randn(12, 8), torch.arange(12) % 5)
"""


@pytest.fixture(autouse=True)
def sources(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Sources of a test's own, gone after it."""
    for name in registry.BUILT_IN:
        predictor_kind(name)
    monkeypatch.setattr(registry, "_kinds", dict(registry._kinds))

    @register("picky", options={"size": 1})
    class Picky(Nothing):
        def __init__(self, request: PredictorRequest) -> None:
            assert request.tensors[0].shape[1] == 99, "only for 99 features"

    register("plain", options={"size": 1})(Nothing)
    modules = set(sys.modules)
    yield
    for name in set(sys.modules) - modules:
        if name in ("model", "stages"):
            del sys.modules[name]


def compiled(folder: Path, text: str = MODEL, **keys: Any) -> Path:
    (folder / "model.py").write_text(text)
    train = keys.pop("train", {})
    spec = spec_from_mapping(
        {
            "model": {"file": str(folder / "model.py")},
            "train": train,
            "devices": {"count": 2, "profile": "cpu-core"},
            "partition": {"cuts": ["1"]},
            "interfaces": {"default": keys},
        },
        "test",
    )
    compile_model(spec, folder / "bundle")
    return folder / "bundle"


@pytest.mark.parametrize("keys", [{"gradient": "picky"}, {"gradient": "stale", "warmup": "picky"}])
def test_a_source_that_refuses_an_interface(tmp_path: Path, keys: dict[str, str]) -> None:
    with pytest.raises(PartitionError, match=r"picky cannot be built here: .*only for 99") as told:
        compiled(tmp_path, **keys)
    assert told.value.where == "interfaces.1"
    assert "[B, 16]" in str(told.value.expected).replace("'", "")
    assert not (tmp_path / "bundle").exists()


def test_a_tail_that_no_loss_is_there_for(tmp_path: Path) -> None:
    text = MODEL.replace("return nn.Sequential(", "return Own(").replace("def loss", "def unused")
    text = text.replace(
        "\ndef build_model",
        "\nclass Own(nn.Sequential):\n    def forward(self, x, labels):\n"
        "        return nn.functional.cross_entropy(super().forward(x), labels)\n\n\n"
        "def build_model",
    )
    text = text.replace("(torch.randn(4, 8),)", "(torch.randn(4, 8), torch.arange(4))")
    text = text.replace(
        "return TensorDataset(torch.randn(12, 8), torch.arange(12) % 5)",
        "return [({'x': torch.randn(8), 'labels': torch.tensor(k % 5)}) for k in range(12)]",
    )
    with pytest.raises(PartitionError, match="output is not one tensor with the batch first"):
        compiled(tmp_path, text, gradient="local", head={"loss": "model"})


@pytest.mark.parametrize(
    ("optimizer", "refused"),
    [
        ({"name": "RMSprop", "lr": 0.01}, True),
        ({"name": "SGD", "lr": 0.01}, True),
        ({"name": "SGD", "lr": 0.01, "momentum": 0.9}, False),
        ({"name": "AdamW", "lr": 0.01}, False),
    ],
)
def test_weights_that_cannot_be_predicted(
    tmp_path: Path, optimizer: dict[str, Any], refused: bool
) -> None:
    keys = {"train": {"optimizer": optimizer}, "gradient": "stale", "predict_weights": True}
    if not refused:
        assert compiled(tmp_path, **keys).is_dir()
        return
    with pytest.raises(PartitionError, match=f"weights of {optimizer['name']} cannot be") as told:
        compiled(tmp_path, **keys)
    assert told.value.where == "interfaces.1.predict_weights"


def test_options_that_a_source_on_the_list_does_not_know() -> None:
    def checked(**keys: Any) -> None:
        check_sources(spec_from_mapping({"interfaces": {"default": keys}}, "test"))

    options = {"options": {"size": 2}}
    checked(sources=["plain", "picky"], head=options)
    checked(gradient="plain", head=options)  # what `auto` might take does not matter
    with pytest.raises(SpecError, match="synthetic has no option 'size'") as told:
        checked(sources=["plain", "synthetic"], head=options)
    assert told.value.where == "interfaces.default.sources"
    with pytest.raises(SpecError, match="there is no gradient source 'other'") as told:
        checked(gradient="stale", warmup="other")
    assert told.value.where == "interfaces.default.warmup"
