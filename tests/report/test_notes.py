"""What a person is told of a plan beyond its table."""

from __future__ import annotations

from pathlib import Path

from dnic.compiler import plan_model
from dnic.report import plan_notes
from dnic.spec import spec_from_mapping

MODELS = Path(__file__).parent.parent / "models"


def notes(name: str, cuts: list[str]) -> list[str]:
    spec = spec_from_mapping(
        {
            "model": {"file": str(MODELS / f"{name}.py")},
            "devices": {"count": len(cuts) + 1, "profile": "cpu-core"},
            "partition": {"cuts": cuts},
        },
        "test",
    )
    planned = plan_model(spec)
    return list(plan_notes(planned.coarse, planned.plan))


def test_a_check_that_is_left_out_and_a_shared_parameter() -> None:
    check, shared = notes("tied", ["layers.1"])
    file = MODELS / "tied.py"
    lines = file.read_text().splitlines()
    line = next(i for i, text in enumerate(lines, 1) if "labels.max() >= 20" in text)
    assert check == f"not in the stages: the check on data at {file}:{line}"
    assert shared == (
        "shared: embed.weight: owned by stage0, copied to stage1 at every step, "
        "1.25\N{NO-BREAK SPACE}KiB each way"
    )


def test_parameters_that_the_same_stages_share_are_one_line() -> None:
    (line,) = notes("repeated", ["x_1", "x_2"])
    assert line.startswith("shared: mixer.linear.bias and 1 more: owned by stage0, copied to ")
    assert "stage1 and stage2 at every step" in line


def test_what_is_kept_whole_and_why() -> None:
    (line,) = notes("odd", ["first"])
    assert line.startswith("kept whole: gate (a branch on the value of a tensor")
    assert "odd.py:" in line


def test_nothing_to_say() -> None:
    assert notes("gpt", ["blocks.0"]) == []
