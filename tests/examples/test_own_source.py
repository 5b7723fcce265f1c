"""The example that brings a gradient source of its own: compiled, and trained by real processes."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from dnic.errors import SpecError
from dnic.runtime.plan import TargetPlan, TensorSpec
from dnic.runtime.reference_replicas import Meeting, MeetingReplicas
from dnic.runtime.registry import PredictorRequest
from dnic.runtime.replicas import Replicas
from dnic.spec.beside import imported_beside

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "own_source"


def dnic(*arguments: object) -> str:
    ended = subprocess.run(
        [sys.executable, "-m", "dnic", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "OMP_NUM_THREADS": "1", "DNIC_PROGRESS": "none"},
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.mark.processes
def test_it_compiles_and_trains(tmp_path: Path) -> None:
    pytest.importorskip("sklearn")
    spec, folder = tmp_path / "spec.yaml", tmp_path / "bundle"
    text = (
        (EXAMPLE / "spec.yaml").read_text().replace("{count: 2}", "{count: 2, profile: cpu-core}")
    )
    spec.write_text(text.replace("file: model.py", f"file: {EXAMPLE / 'model.py'}"))
    dnic("compile", "--spec", spec, "-o", folder)
    plan = yaml.safe_load((folder / "plan.yaml").read_text())
    (interface,) = plan["interfaces"]
    assert interface["gradient"] == "class_mean"
    assert interface["head"]["momentum"] == 0.2
    sums = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in plan["files"]
    }
    assert sums == plan["files"]
    assert "source.py" in sums
    dnic("train", folder, "--epochs", 3)
    result = json.loads((folder / "runs" / "decoupled" / "result.json").read_text())
    assert result["interfaces"]["1"]["gradient"] == "class_mean"
    assert result["test_accuracy"] > 0.8
    # A plan that is taken back keeps the options of the source.
    dnic("compile", "--plan", folder / "plan.yaml", "-o", tmp_path / "again")
    again = yaml.safe_load((tmp_path / "again" / "plan.yaml").read_text())
    assert again["interfaces"][0]["head"]["momentum"] == 0.2


def test_its_replicas_learn_what_one_learns() -> None:
    """Shares of 5 and 3 samples; and a class that only one of them has."""
    spec = importlib.util.spec_from_file_location("source_of_a_test", EXAMPLE / "source.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    tensor = TensorSpec("h", ("B", 4), "float32", True)
    target = torch.tensor([0, 1, 1, 2, 0, 1, 1, 0])
    true = torch.randn(8, 4, generator=torch.Generator().manual_seed(0)) / 8
    meeting = Meeting(2)

    def built(replicas: Replicas | None) -> Any:
        planned = TargetPlan((), "int64", 4)
        return module.ClassMean(PredictorRequest((tensor,), target=planned, replicas=replicas))

    def learnt(index: int) -> torch.Tensor:
        meeting.enter(index)
        own = built(MeetingReplicas(index, 2, meeting=meeting))
        rows = slice(0, 5) if index == 0 else slice(5, 8)
        own.weight = 2 * len(target[rows]) / 8
        own.learn([torch.zeros(1)], target[rows], [2 * true[rows]])
        meeting.leave(index)
        return own.mean

    one = built(None)
    one.learn([torch.zeros(1)], target, [true])
    with ThreadPoolExecutor(2) as pool:
        first, second = (run.result() for run in [pool.submit(learnt, i) for i in range(2)])
    assert torch.equal(first, second)
    torch.testing.assert_close(first, one.mean)
    torch.testing.assert_close(one.mean[2], 0.1 * 8 * true[3])
    assert not one.mean[3].any()


def test_what_a_model_file_imports_from_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model.py"
    for name in ("model", "helper_of_a_test", "unused_of_a_test"):
        (tmp_path / f"{name}.py").write_text(f"# {name}\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "helper_of_a_test", raising=False)
    assert imported_beside(model) == {}
    __import__("helper_of_a_test")
    assert imported_beside(model) == {"helper_of_a_test.py": b"# helper_of_a_test\n"}
    (tmp_path / "stages.py").write_text("")
    monkeypatch.delitem(sys.modules, "stages", raising=False)
    __import__("stages")
    with pytest.raises(SpecError, match=r"imports stages\.py, which a bundle has of its own"):
        imported_beside(model)
    for name in ("stages", "helper_of_a_test"):
        monkeypatch.delitem(sys.modules, name)
