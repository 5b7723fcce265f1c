"""The proof as it is kept: content, the same bytes again, whole or not at all, read back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dnic import __version__
from dnic.errors import VerifyError
from dnic.partition.plan import Plan, PlannedModel, PlannedOptimizer, PlannedTraining, Prediction
from dnic.proof.proof_file import PROOF_FILE, proof_file, read_proof, write_proof
from dnic.proof.rung import Errors, Rung
from dnic.trace.crosscheck import CrossCheck

SPLIT = Rung(
    name="split",
    passed=True,
    max_abs_error=1.5e-7,
    tolerance=1e-5,
    compared=42,
    detail="outputs, gradients and buffers",
    errors=Errors(outputs=0.0, gradients=1.5e-7),
    batch_sizes=(4, 7),
    modes=("train", "eval"),
)
FAILED = Rung("exact", False, float("inf"), 1e-4, 20, "losses", ("losses differ",))
UNTRIED = Rung("oracle", None, 0.0, 1e-4, 0, "not tried: one stage")
CAPTURE = CrossCheck("torch.export", False, "depends on data", ("model.py:3: if é:",))


@pytest.fixture
def plan() -> Plan:
    return Plan(
        dnic="0",
        model=PlannedModel(name="Net", parameters=1, parameter_bytes=4, batch_size=4, operations=1),
        train=PlannedTraining(batch_size=4, epochs=1, optimizer=PlannedOptimizer()),
        target=None,
        stages=(),
        interfaces=(),
        prediction=Prediction(
            profile="cpu", backprop_us=1, step_us=1, speedup=1, bottleneck="stage0"
        ),
        files={"stages.py": "22", "model.py": "11"},
    )


def test_content(plan: Plan) -> None:
    content = json.loads(proof_file([SPLIT, FAILED, UNTRIED], plan, CAPTURE))
    rungs = content.pop("rungs")
    assert content == {
        "dnic": __version__,
        "torch": str(torch.__version__),
        "model": "Net",
        "stages": 0,
        "files": {"model.py": "11", "stages.py": "22"},
        "passed": False,
        "capture": {
            "method": "torch.export",
            "agrees": False,
            "detail": "depends on data",
            "branches": ["model.py:3: if é:"],
        },
    }
    assert rungs["split"] == {
        "passed": True,
        "max_abs_error": 1.5e-7,
        "tolerance": 1e-5,
        "compared": 42,
        "detail": "outputs, gradients and buffers",
        "failures": [],
        "errors": {"outputs": 0.0, "gradients": 1.5e-7, "buffers": None},
        "batch_sizes": [4, 7],
        "modes": ["train", "eval"],
    }
    assert list(rungs) == ["split", "exact", "oracle"]
    assert rungs["exact"]["max_abs_error"] is None
    assert rungs["exact"]["failures"] == ["losses differ"]
    assert rungs["oracle"]["passed"] is None


def test_what_was_not_tried_fails_nothing(plan: Plan) -> None:
    content = json.loads(proof_file([SPLIT, UNTRIED], plan))
    assert content["passed"] is True
    assert content["capture"] is None


def test_the_same_bytes_again(plan: Plan) -> None:
    again = plan.model_copy(update={"files": dict(reversed(plan.files.items()))})
    assert proof_file([SPLIT], plan, CAPTURE) == proof_file([SPLIT], again, CAPTURE)


def test_infinite_errors_of_a_kind_are_null() -> None:
    rung = Rung("split", False, 1.0, 1e-5, 1, "", errors=Errors(gradients=float("inf")))
    assert rung.as_dict()["errors"] == {"outputs": None, "gradients": None, "buffers": None}


def test_errors_in_words() -> None:
    assert str(Errors(0.0, 1.5e-7)) == "outputs 0.0e+00, gradients 1.5e-07"
    assert str(Errors(buffers=float("inf"))) == "buffers inf"


def test_written_and_read_back(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / PROOF_FILE).write_text("old")
    write_proof(tmp_path, proof_file([SPLIT], plan))
    assert [path.name for path in tmp_path.iterdir()] == [PROOF_FILE]
    assert read_proof(tmp_path)["rungs"]["split"]["compared"] == 42


def test_an_old_proof_stays_where_a_new_one_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / PROOF_FILE).mkdir()
    with pytest.raises(OSError, match="directory"):
        write_proof(tmp_path, b"{}")
    assert [path.name for path in tmp_path.iterdir()] == [PROOF_FILE]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "nothing is known"),
        (b"{", "cannot be read"),
        (b"\xff", "cannot be read"),
        (b"[]", "this is no proof"),
        (b'{"rungs": []}', "this is no proof"),
    ],
)
def test_what_cannot_be_read_is_said(tmp_path: Path, content: bytes | None, said: str) -> None:
    if content is not None:
        (tmp_path / PROOF_FILE).write_bytes(content)
    with pytest.raises(VerifyError, match=said) as caught:
        read_proof(tmp_path)
    assert caught.value.where == str(tmp_path / PROOF_FILE)
