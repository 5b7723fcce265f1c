"""`dnic probe` and what `dnic plan` makes of it, through the real command line."""

from __future__ import annotations

import json
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest

from dnic import cli

MODEL = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def build_model():
    layers = [nn.Sequential(nn.Linear(64, 64), nn.ReLU()) for _ in range(6)]
    return nn.Sequential(*layers, nn.Linear(64, 3))

def example_inputs():
    return (torch.randn(512, 64),)

def loss(output, target):
    return nn.functional.cross_entropy(output, target)

def train_data():
    made = torch.Generator().manual_seed(0)
    x = torch.randn(1024, 64, generator=made)
    return TensorDataset(x, x[:, :3].argmax(1))
"""
SPEC = "model: {file: model.py}\ndevices: {profile: cpu-core}\n"


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Run a command line in a folder with a model: exit status, stdout, stderr."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "80")
    Path("model.py").write_text(MODEL)
    Path("s.yaml").write_text(SPEC)

    def run_line(*line: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["dnic", *line])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run_line


def test_a_probe_is_measured_written_and_planned_with(
    run: Callable[..., tuple[int, str, str]],
) -> None:
    options = ("--steps", "6", "--lateness", "1,2", "--sources", "synthetic,stale")
    status, out, _ = run("probe", "--spec", "s.yaml", "--cuts", "2,3", *options)
    assert status == 0 and "6 exact steps of 512 samples" in out
    [data] = Path("build").glob("*.json")
    assert f"dnic plan --spec s.yaml --probe {data}" in out
    content = json.loads(data.read_text())
    assert [cut["after"] for cut in content["cuts"]] == ["2", "3"]
    assert len(content["rows"]) == 2 * 2 * 2
    ET.parse(data.with_suffix(".svg"))
    for row in content["rows"]:
        # As if the cut after 2 could be predicted well, and the one after 3 not at all.
        row |= {"explained": 0.9 if row["cut"] == "2" else -0.5, "progress": 0.8}
    data.write_text(json.dumps(content))
    status, out, err = run("plan", "--spec", "s.yaml", "--probe", str(data), "--json")
    assert status == 0, err
    forced = "partition: {cuts: ['%s']}\n"
    for cut, gradient, reason in (
        ("2", "synthetic", "counted as 56% more steps"),
        ("3", "local", "synthetic at lateness 2 is no better than no gradient"),
    ):
        Path("s.yaml").write_text(SPEC + forced % cut)
        status, out, err = run("plan", "--spec", "s.yaml", "--probe", str(data), "--json")
        assert status == 0, err
        (interface,) = json.loads(out)["plan"]["interfaces"]
        assert interface["gradient"] == gradient and reason in interface["reason"]
    waits = "partition: {cuts: ['3']}\ninterfaces: {default: {sources: [synthetic]}}\n"
    Path("s.yaml").write_text(SPEC + waits)
    status, out, err = run("plan", "--spec", "s.yaml", "--probe", str(data), "--json")
    assert status == 0, err
    (interface,) = json.loads(out)["plan"]["interfaces"]
    assert interface["gradient"] == "exact"
    assert "is no better than no gradient: each step waits" in interface["reason"]


def test_json_is_what_the_file_holds(run: Callable[..., tuple[int, str, str]]) -> None:
    options = ("--steps", "2", "--cuts", "1", "--sources", "none", "-o", "p.json", "--json")
    status, out, err = run("probe", "--spec", "s.yaml", *options)
    assert status == 0, err
    assert json.loads(out) == json.loads(Path("p.json").read_text())


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (["probe"], ["no model file"]),
        (["probe", "model.py", "--sources", "virtuell"], ["virtuell", "virtual"]),
        (["probe", "model.py", "--cuts", "nine"], ["nine", "--cuts"]),
        (["probe", "model.py", "-o", "p.txt"], ["p.txt", ".json"]),
        (["plan", "--spec", "s.yaml", "--probe", "p.json"], ["no such probe", "p.json"]),
        (["compile", "--plan", "x", "--probe", "p.json"], ["--plan comes without --probe"]),
    ],
)
def test_what_is_refused(
    run: Callable[..., tuple[int, str, str]], line: list[str], says: list[str]
) -> None:
    status, out, err = run(*line)
    assert status == 2 and out == ""
    assert all(text in err for text in says) and "Traceback" not in err


def test_a_probe_of_another_model(run: Callable[..., tuple[int, str, str]]) -> None:
    run("probe", "--spec", "s.yaml", "--steps", "2", "--sources", "none", "-o", "p.json")
    Path("model.py").write_text(MODEL.replace("range(6)", "range(5)"))
    status, _, err = run("plan", "--spec", "s.yaml", "--probe", "p.json")
    assert status == 2 and "the probe is of another version of Sequential" in err
