"""The same input gives the same bytes, whatever order the hashes of this process put things in."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MODELS = Path(__file__).parent.parent / "models"
SPEC = """
model: {{file: {model}}}
devices: {{count: 3, profile: cpu-core}}
partition: {{stages: 3}}
"""


@pytest.mark.processes
@pytest.mark.parametrize("name", ["tied", "branches"])
def test_two_processes_write_the_same_bundle(tmp_path: Path, name: str) -> None:
    spec = tmp_path / "spec.yaml"
    spec.write_text(SPEC.format(model=MODELS / f"{name}.py"))
    bundles = []
    for seed in ("1", "2"):
        folder = tmp_path / seed / "bundle"
        folder.parent.mkdir()
        subprocess.run(
            [sys.executable, "-m", "dnic", "compile", "--spec", str(spec), "-o", str(folder)],
            check=True,
            capture_output=True,
            timeout=240,
            env={**os.environ, "PYTHONHASHSEED": seed, "OMP_NUM_THREADS": "1"},
        )
        bundles.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
    first, second = bundles
    assert first.keys() == second.keys() >= {"plan.yaml", "stages.py", "init.safetensors"}
    assert [file for file in first if first[file] != second[file]] == []
