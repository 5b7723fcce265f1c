"""Rung 1: it passes for what is right and sees what is wrong."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dnic.codegen.write import bundle_files
from dnic.compiler import plan_model
from dnic.errors import VerifyError
from dnic.proof.bundle import prove_bundle_split
from dnic.spec import spec_from_mapping

MODELS = Path(__file__).parent.parent / "models"


CUTS = {
    "gpt": ["blocks.0", "blocks.2.proj"],
    "residual": ["layer1.0", "layer2.0"],
    "branches": ["down2", "middle"],
    "odd": ["first", "gate"],
}


def written(folder: Path, name: str, stages: int, cuts: object = "auto") -> Path:
    """The bundle of a test model, without pictures, unproven."""
    spec = spec_from_mapping(
        {
            "model": {"file": str(MODELS / f"{name}.py")},
            "devices": {"count": stages, "profile": "cpu-core"},
            "partition": {"stages": stages, "cuts": cuts},
        },
        "test",
    )
    planned = plan_model(spec)
    assert len(planned.plan.stages) == stages
    files = bundle_files(planned.coarse, planned.plan, planned.loaded.source.path.read_bytes())
    for file, content in files.items():
        (folder / file).write_bytes(content)
    return folder


@pytest.mark.parametrize("stages", [1, 2, 3, 4])
@pytest.mark.parametrize(
    "name",
    [
        "gpt",
        "residual",
        "branches",
        "odd",
        "stream",
        "tied",
        "repeated",
        "averages",
        "time_first",
        "pooled",
        "sequential",
        "unet",
        "tiny_llama",
    ],
)
def test_stages_are_the_model(tmp_path: Path, name: str, stages: int) -> None:
    rung = prove_bundle_split(written(tmp_path, name, stages))
    assert rung.passed, rung.failures
    assert rung.compared > 20
    assert rung.max_abs_error < 1e-6


@pytest.mark.parametrize(
    ("name", "right", "wrong", "seen"),
    [
        ("gpt", r"is_causal=True", "is_causal=False", "gradient of"),
        ("gpt", r"self\.norm\((\w+)\)", r"self.norm(\1.detach())", "gradient of"),
        ("gpt", r"batch = (\w+)\.size\(0\)", "batch = 4", "shape"),
        ("residual", r"self\.layer2\[1\]\((\w+)\)", r"self.layer2[1].eval()(\1)", "train mode"),
        ("residual", r"self\.dropout\((\w+)\)", r"\1", "train mode"),
        ("branches", r"\* gate", "* gate * 1.001", "gradient of up1"),
        ("odd", r"torch\.zeros\(batch", "torch.zeros(5", "batch"),
    ],
)
def test_a_wrong_stage_is_seen(
    tmp_path: Path, name: str, right: str, wrong: str, seen: str
) -> None:
    folder = written(tmp_path, name, 3, CUTS[name])
    stages = folder / "stages.py"
    text, count = re.subn(right, wrong, stages.read_text(), count=1)
    assert count == 1, f"{right} is not in\n{stages.read_text()}"
    stages.write_text(text)
    rung = prove_bundle_split(folder)
    assert rung.passed is False
    assert any(seen in failure for failure in rung.failures), rung.failures


def test_a_model_file_that_leans_on_a_neighbour_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path, "gpt", 2)
    (folder / "model.py").write_text("import neighbour_that_is_not_there\n")
    with pytest.raises(VerifyError, match=r"model\.py of the bundle cannot be imported"):
        prove_bundle_split(folder)
