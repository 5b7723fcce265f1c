"""The main job through the real command line: compile, verify, train, export; real processes."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

ROOT = Path(__file__).parent.parent.parent
MODELS = Path(__file__).parent.parent / "models"


def dnic(*arguments: object, status: int = 0) -> str:
    """Run a command line in a process of its own; stdout."""
    ended = subprocess.run(
        [sys.executable, "-m", "dnic", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=240,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "120"},
        check=False,
    )
    assert ended.returncode == status, ended.stdout + ended.stderr
    return ended.stdout


def module(file: Path) -> Any:
    spec = importlib.util.spec_from_file_location("users_model", file)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "digits"
    spec = folder.with_suffix(".yaml")
    text = (ROOT / "specs" / "digits.yaml").read_text()
    text = text.replace("../examples", str(ROOT / "examples"))
    # Where it is cut must not depend on how busy the machine was when it was measured.
    spec.write_text(text.replace("{count: 2}", "{count: 2, profile: cpu-core}"))
    printed = dnic("compile", "--spec", spec, "-o", folder)
    assert "proven" in printed and str(folder) in printed
    return folder


def test_the_bundle_holds_what_it_should(bundle: Path) -> None:
    names = {path.name for path in bundle.iterdir() if path.is_file()}
    assert names == {
        "plan.yaml",
        "stages.py",
        "train.py",
        "model.py",
        "init.safetensors",
        "proof.json",
        "partition.dot",
        "partition.svg",
    }
    assert (bundle / "model.py").read_text() == (ROOT / "examples/digits/model.py").read_text()
    state = safetensors.torch.load_file(bundle / "init.safetensors")
    assert state.keys() == module(bundle / "model.py").build_model().state_dict().keys()


@pytest.mark.processes
def test_all_three_rungs_hold(bundle: Path) -> None:
    result = json.loads(dnic("verify", bundle, "--json"))
    assert result["passed"] is True
    assert list(result["rungs"]) == ["split", "exact", "oracle"]
    for rung in result["rungs"].values():
        assert rung["passed"] is True and rung["compared"] >= 20
    assert result["rungs"]["oracle"]["max_abs_error"] == 0.0


@pytest.mark.processes
def test_a_trained_checkpoint_is_the_users_own_model(bundle: Path, tmp_path: Path) -> None:
    result = json.loads(dnic("train", bundle, "--epochs", 3, "--json"))
    assert result["mode"] == "decoupled" and result["world_size"] == 2 and result["epochs"] == 3
    assert result["samples_per_s"] > 0
    lines = (bundle / "runs/decoupled/metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in lines] == [1, 2, 3]
    exported = tmp_path / "model.safetensors"
    dnic("export", bundle, "--checkpoint", bundle / "runs/decoupled", "-o", exported)
    users = module(ROOT / "examples/digits/model.py")
    model = users.build_model()
    model.load_state_dict(safetensors.torch.load_file(exported), strict=True)
    images, labels = users.test_data()[:]
    with torch.no_grad():
        right = (model.eval()(images).argmax(1) == labels).double().mean().item()
    assert right == pytest.approx(result["test_accuracy"], abs=1e-9)
    assert right > 0.5


def test_an_edited_plan_compiles_again(bundle: Path, tmp_path: Path) -> None:
    dnic("compile", "--plan", bundle / "plan.yaml", "-o", tmp_path / "again")
    for name in ("stages.py", "train.py", "model.py", "init.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (bundle / name).read_bytes(), name
    text = (bundle / "plan.yaml").read_text()
    edited = tmp_path / "edited"
    edited.mkdir()
    (edited / "model.py").write_bytes((bundle / "model.py").read_bytes())
    plan = yaml.safe_load(text)
    cut = plan["stages"][0]["modules"][0]
    assert plan["cuts"] != [cut]
    written = next(line for line in text.splitlines() if line.startswith("cuts:"))
    (edited / "plan.yaml").write_text(text.replace(written, f"cuts: [{cut}]"))
    dnic("compile", "--plan", edited / "plan.yaml", "-o", tmp_path / "moved")
    assert f"cut after {cut}." in (tmp_path / "moved" / "stages.py").read_text()


def test_plan_prints_json_and_writes_nothing(tmp_path: Path) -> None:
    before = sorted(tmp_path.iterdir())
    told = json.loads(dnic("plan", MODELS / "gpt.py", "--devices", 2, "--json"))
    plan = told["plan"]
    names = [alternative["name"] for alternative in told["alternatives"]]
    assert {"one_device", "ddp", "1f1b", "decoupled"} <= set(names)
    assert all(
        {"name", "samples_per_s", "peak_memory_bytes"} <= alternative.keys()
        for alternative in told["alternatives"]
    )
    assert {"decouple", "speedup", "best", "reason"} <= told["verdict"].keys()
    assert told["verdict"]["best"] in names
    assert len(plan["stages"]) <= 2
    assert {"modules", "parameters", "forward_flops", "forward_us"} <= plan["stages"][0].keys()
    assert {"backprop_us", "step_us", "speedup"} <= plan["prediction"].keys()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("suffix", "magic"), [(".svg", b"<?xml"), (".png", b"\x89PNG"), (".dot", b"digraph")]
)
def test_draw(bundle: Path, tmp_path: Path, suffix: str, magic: bytes) -> None:
    picture = tmp_path / f"partition{suffix}"
    dnic("draw", bundle, "-o", picture)
    assert magic in picture.read_bytes()[:200]


def test_init_and_check(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    dnic("init", MODELS / "gpt.py", "-o", spec)
    assert "GPT" in dnic("check", spec) or "build_model" in dnic("check", spec)
    assert dnic("compile", "--spec", spec, "-o", tmp_path / "gpt")


def test_tensors_that_skip_a_stage_survive_the_round_trip(tmp_path: Path) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        f"model: {{file: {MODELS / 'branches.py'}}}\n"
        "devices: {count: 3, profile: cpu-core}\n"
        "partition: {cuts: [down2, middle]}\n"
    )
    dnic("compile", "--spec", spec, "-o", tmp_path / "one")
    dnic("compile", "--plan", tmp_path / "one", "-o", tmp_path / "two")
    assert (tmp_path / "one/stages.py").read_text() == (tmp_path / "two/stages.py").read_text()


def test_a_plan_without_weights(tmp_path: Path) -> None:
    """The bundle builds its weights from the seed; what is verified are shapes."""
    folder = tmp_path / "meta"
    printed = dnic("compile", MODELS / "tiny_llama.py", "--meta", "--devices", 2, "-o", folder)
    assert "shapes equal" in printed
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    assert plan["model"]["weights"] == "seed"
    assert not (folder / "init.safetensors").exists()
    result = json.loads((folder / "proof.json").read_text())
    assert "meta device" in json.dumps(result)
