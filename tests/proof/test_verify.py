"""`dnic verify` on a bundle: the second opinion on the capture, and what it keeps in the bundle."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from dnic.codegen.write import bundle_files
from dnic.compiler import plan_model
from dnic.proof.bundle import verify_bundle
from dnic.proof.proof_file import PROOF_FILE, read_proof
from dnic.report import verify_table
from dnic.spec import spec_from_mapping

MODEL = """
import torch
from torch import nn


class Gate(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        if x.sum() > 1000:
            return x
        return self.linear(x)


class Net(nn.Module):
    def __init__(self, middle):
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(8, 8), middle, nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.middle(torch.relu(self.first(x))))


def build_model():
    return Net({middle})


def example_inputs():
    return {inputs}


def loss(output, target):
    return output.sum()
"""


def written(
    folder: Path, middle: str, inputs: str = "torch.randn(4, 8)", meta: bool = False
) -> Path:
    """A bundle of two stages, without training data."""
    model = folder / "net.py"
    model.write_text(MODEL.replace("{middle}", middle).replace("{inputs}", inputs))
    spec = spec_from_mapping(
        {
            "model": {"file": str(model), "meta": meta},
            "devices": {"count": 2, "profile": "cpu-core"},
            "partition": {"stages": 2, "cuts": ["first"]},
        },
        "test",
    )
    planned = plan_model(spec)
    bundle = folder / "bundle"
    bundle.mkdir()
    for name, content in bundle_files(planned.coarse, planned.plan, model.read_bytes()).items():
        (bundle / name).write_bytes(content)
    return bundle


def printed(result: dict[str, Any]) -> str:
    """The table as one line."""
    console = Console(file=io.StringIO(), width=100)
    with console.capture() as capture:
        console.print(verify_table(result))
    return " ".join(capture.get().split())


def test_what_is_found_is_kept(tmp_path: Path) -> None:
    bundle = written(tmp_path, "nn.Linear(8, 8)")
    begun: list[str] = []
    result = verify_bundle(bundle, begun.append)
    assert begun == ["split", "capture"]
    assert result["passed"] is True
    assert result["capture"]["agrees"] is True
    assert "unwritten" not in result
    assert "capture: agrees (torch.export follows it" in printed(result)
    kept = read_proof(bundle)
    assert {key: kept[key] for key in result} == json.loads(json.dumps(result))
    assert kept["model"] == "Net"
    assert kept["stages"] == 2
    assert set(kept["files"]) == {"stages.py", "model.py", "init.safetensors"}
    assert sorted(path.name for path in bundle.iterdir()) == sorted(
        [*kept["files"], "plan.yaml", "train.py", PROOF_FILE]
    )


def test_the_same_bytes_wherever_the_bundle_lies(tmp_path: Path) -> None:
    bundle = written(tmp_path, "Gate()")
    other = shutil.copytree(bundle, tmp_path / "other" / "place")
    for folder in (bundle, other):
        verify_bundle(folder)
    first, second = ((folder / PROOF_FILE).read_bytes() for folder in (bundle, other))
    assert first == second
    assert str(tmp_path).encode() not in first


def test_a_branch_on_data_is_named_and_fails_nothing(tmp_path: Path) -> None:
    bundle = written(tmp_path, "Gate()")
    result = verify_bundle(bundle)
    line = (bundle / "model.py").read_text().splitlines().index("        if x.sum() > 1000:") + 1
    assert result["passed"] is True
    assert result["capture"]["agrees"] is False
    assert f"capture: disagrees (control flow depends on data at model.py:{line}: if" in printed(
        result
    )
    assert result["capture"]["branches"] == [f"model.py:{line}: if x.sum() > 1000:"]


@pytest.mark.parametrize("inputs", ["(torch.randn(4, 8),)", "{'x': torch.randn(4, 8)}"])
def test_inputs_by_place_and_by_name(tmp_path: Path, inputs: str) -> None:
    result = verify_bundle(written(tmp_path, "nn.ReLU()", inputs))
    assert result["capture"]["method"] == "torch.export", result["capture"]
    assert result["capture"]["agrees"] is True


def test_a_bundle_that_cannot_be_written_to_is_verified_all_the_same(tmp_path: Path) -> None:
    bundle = written(tmp_path, "nn.ReLU()")
    (bundle / PROOF_FILE).mkdir()
    result = verify_bundle(bundle)
    assert result["passed"] is True
    assert result["unwritten"] == "proof.json: Is a directory"
    assert "not kept: proof.json: Is a directory" in printed(result)


def test_a_bundle_without_weights(tmp_path: Path) -> None:
    result = verify_bundle(written(tmp_path, "nn.ReLU()", meta=True))
    assert result["rungs"]["split"]["passed"] is True, result["rungs"]["split"]["failures"]
    assert result["rungs"]["split"]["compared"] > 0
    assert result["capture"]["agrees"] is True
