"""One clear error for each mistake: what, where, what was expected, what to do. No traceback."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dnic import cli

TESTS = Path(__file__).parent.parent

MODEL = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(4, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, x):
        return self.head(torch.relu(self.stem(x)))

def example_inputs():
    return (torch.randn(6, 4),)

def loss(output, target):
    return (output - target).square().mean()
"""
NO_BUILDER = (
    "import torch\nexample_inputs = lambda: (torch.ones(2, 2),)\nloss = lambda o, t: o.mean()\n"
)
NINE = "model: {file: model.py}\ndevices: {profile: cpu-core, count: 9}\npartition: {stages: 9}\n"
FAST = "devices: {profile: cpu-core}\n"


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[str], tuple[int, str]]:
    """Run a command line in a folder with a good model; exit status and what stderr says."""
    monkeypatch.chdir(tmp_path)
    Path("model.py").write_text(MODEL)
    Path("fast.yaml").write_text("model: {file: model.py}\n" + FAST)

    def run_line(line: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["dnic", *line.split()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0), capsys.readouterr().err

    return run_line


@pytest.mark.parametrize(
    ("files", "line", "says"),
    [
        pytest.param({}, "compile modle.py", ["modle.py", "model.py"], id="no such file"),
        pytest.param({}, "compile .", ["folder"], id="a folder"),
        pytest.param({}, "compile", ["no model file"], id="nothing named"),
        pytest.param({"m.py": NO_BUILDER}, "compile m.py", ["build_model"], id="no build_model"),
        pytest.param(
            {"m.py": "import torch\n1/0\n"},
            "compile m.py",
            ["ZeroDivisionError", "m.py:2"],
            id="fails on import",
        ),
        pytest.param(
            {
                "m.py": MODEL.replace(
                    "return self.head", "if x.sum() > 0: x = -x\n        return self.head"
                )
            },
            "compile m.py",
            ["a branch on the value of a tensor", "m.py:12", "torch.where"],
            id="data-dependent control flow",
        ),
        pytest.param(
            {"s.yaml": "model: {file: model.py}\ntrain:\n  epochz: 3\n"},
            "compile --spec s.yaml",
            ["unknown key train.epochz", "s.yaml:3", "epochs"],
            id="unknown key",
        ),
        pytest.param(
            {"s.yaml": "model: {file: model.py}\ndevices: {memory: 80Gigs}\n"},
            "compile --spec s.yaml",
            ["devices.memory", "s.yaml:2", "GiB"],
            id="wrong unit",
        ),
        pytest.param(
            {"s.yaml": f"model: {{file: model.py}}\n{FAST}partition: {{cuts: [stemm]}}\n"},
            "compile --spec s.yaml",
            ["stemm", "partition.cuts", "stem"],
            id="a cut at a module that does not exist",
        ),
        pytest.param(
            {"s.yaml": NINE},
            "compile --spec s.yaml",
            ["9 stages", "cut point"],
            id="more stages than cut points",
        ),
        pytest.param(
            {},
            "plan --spec fast.yaml --schedule fast",
            ["--schedule", "decoupled", "1f1b"],
            id="a schedule that there is not",
        ),
        pytest.param(
            {"s.yaml": f"model: {{file: model.py}}\n{FAST}partition: {{replicas: 2}}\n"},
            "compile --spec s.yaml --devices 3",
            ["partition.replicas", "2 replicas of every stage on 3 device(s)", "auto"],
            id="replicas of which there are too few devices",
        ),
        pytest.param(
            {
                "s.yaml": f"model: {{file: model.py}}\n{FAST}"
                "partition: {shard: true, schedule: decoupled}\n"
            },
            "compile --spec s.yaml",
            ["partition.shard", "decoupled has none", "partition.replicas: 2 or more"],
            id="parts of a stage without replicas",
        ),
        pytest.param(
            {},
            "compile --spec fast.yaml --devices 1 --schedule 1f1b",
            ["1f1b", "1 device(s)", "partition.schedule"],
            id="a pipeline on one device",
        ),
        pytest.param(
            {
                "s.yaml": "model: {file: model.py}\n"
                "devices: {count: 2, profile: cpu-core, memory: 1KiB}\n"
            },
            "plan --spec s.yaml",
            ["stage 0 needs", "device 0 has 1 KiB", "too much"],
            id="memory that nothing fits",
        ),
        pytest.param({}, "compile model.py --devices 0", ["--devices", "0"], id="--devices 0"),
        pytest.param({}, "compile model.py --devices two", ["--devices"], id="--devices two"),
        pytest.param(
            {"there/file": "x"},
            "compile model.py -o there",
            ["is not a bundle"],
            id="no bundle there",
        ),
        pytest.param(
            {"there/plan.yaml": "x"},
            "compile model.py -o there",
            ["exists", "--force"],
            id="exists",
        ),
        pytest.param({}, "compile --plan model.py model.py", ["--plan"], id="plan and model"),
        pytest.param({}, "compile --plan nowhere -o x", ["no such plan"], id="no such plan"),
        pytest.param(
            {}, "plan model.py --print-after oven", ["oven", "capture"], id="no such pass"
        ),
        pytest.param({}, "verify nowhere", ["nowhere"], id="verify nothing"),
        pytest.param({}, "train nowhere", ["not a bundle"], id="train nothing"),
        pytest.param({}, "train . --mode fast", ["fast", "decoupled"], id="no such mode"),
        pytest.param(
            {}, "compare . --modes slow", ["slow", "backprop"], id="no such mode to compare"
        ),
        pytest.param({}, "compare . --seeds a,b", ["a,b"], id="no seeds"),
        pytest.param({}, "draw nowhere.py -o x.svg", ["nowhere.py"], id="draw nothing"),
        pytest.param(
            {}, "export . --checkpoint c -o m.safetensors", ["plan"], id="export no bundle"
        ),
        pytest.param({}, "init nowhere.py", ["nowhere.py"], id="init nothing"),
        pytest.param(
            {"spec.yaml": ""}, "init model.py", ["exists", "--force"], id="init over a file"
        ),
        pytest.param({}, "check nowhere.yaml", ["nowhere.yaml"], id="check nothing"),
    ],
)
def test_a_mistake_gets_one_clear_error(
    run: Callable[[str], tuple[int, str]], files: dict[str, str], line: str, says: list[str]
) -> None:
    for name, text in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text(text)
    before = sorted(Path.cwd().rglob("*"))
    status, message = run(line)
    assert status == 2
    assert "Traceback" not in message
    for words in says:
        assert words in message, message
    assert sorted(p for p in Path.cwd().rglob("*") if "__pycache__" not in str(p)) == before


def test_force_replaces_a_bundle_and_keeps_its_runs(
    run: Callable[[str], tuple[int, str]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for arguments in ("-o b", "-o b --force"):
        monkeypatch.setattr(sys, "argv", ["dnic", *f"compile --spec fast.yaml {arguments}".split()])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert not ended.value.code, capsys.readouterr().err
        Path("b/runs").mkdir(exist_ok=True)
        (Path("b/runs") / "kept").touch()
    assert Path("b/runs/kept").exists()
    assert [p.name for p in Path.cwd().iterdir() if p.name.startswith(".")] == []


def test_a_bundle_that_fails_its_proof_is_not_written(
    run: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from dnic.codegen import write

    real = write.stages_source
    monkeypatch.setattr(
        write, "stages_source", lambda *args: real(*args).replace("torch.relu", "torch.sigmoid")
    )
    status, message = run("compile --spec fast.yaml -o b")
    assert status == 1
    assert "do not compute what the model computes" in message
    assert sorted(p.name for p in Path.cwd().iterdir()) == ["fast.yaml", "model.py"]


def test_a_plan_that_was_edited_no_longer_matches(
    run: Callable[[str], tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["dnic", "compile", "--spec", "fast.yaml", "-o", "b"])
    with pytest.raises(SystemExit):
        cli.main()
    shutil.copytree("b", "c")
    plan = Path("b/plan.yaml")
    plan.write_text(plan.read_text().replace("outputs: [", "outputs: [other, ", 1))
    status, message = run("verify b")
    assert status == 2 and "stages.py was generated from another plan" in message
    stages = Path("c/stages.py")
    stages.write_text(stages.read_text() + "# edited\n")
    status, message = run("verify c")
    assert status == 2 and "stages.py was edited" in message and "dnic compile --plan" in message
