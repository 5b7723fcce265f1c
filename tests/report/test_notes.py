"""What a person is told of a plan beyond its table."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnic.compiler import plan_model
from dnic.report import plan_notes
from dnic.spec import spec_from_mapping

MODELS = Path(__file__).parent.parent / "models"


def notes(name: str, cuts: list[str], **sections: object) -> list[str]:
    spec = spec_from_mapping(
        {
            "model": {"file": str(MODELS / f"{name}.py")},
            "devices": {"count": len(cuts) + 1, "profile": "cpu-core"},
            "partition": {"cuts": cuts, "schedule": "decoupled"},
            **sections,
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


@pytest.mark.parametrize(
    ("sections", "why"),
    [
        ({"interfaces": {"default": {"return_every": 4}}}, "one true gradient in 4 comes back"),
        (
            {"interfaces": {"blocks.2": {"gradient": "stale"}}},
            "the true gradients of stage1 are late",
        ),
        ({"train": {"update_probability": 0.2}}, "stages update by chance"),
    ],
)
def test_guards_that_cannot_wait(sections: dict[str, object], why: str) -> None:
    lines = notes("gpt", ["blocks.0", "blocks.2"], **sections)
    assert lines[0] == (
        f"guard: blocks.0 cannot go back to exact, because {why}: while its head is of no use it "
        "goes on without a gradient"
    )
    assert len(lines) == (1 if "stage1" in why else 2)


def test_nothing_to_say() -> None:
    assert notes("gpt", ["blocks.0"]) == []
