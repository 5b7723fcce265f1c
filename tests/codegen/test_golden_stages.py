"""Emitted stages as golden text: `DNIC_UPDATE_GOLDEN=1 pytest` writes the files anew."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import pytest

from dnic.codegen.stages import stages_source
from dnic.codegen.train import train_source
from dnic.compiler import plan_model
from dnic.spec import spec_from_mapping

TESTS = Path(__file__).parent.parent
CASES = [
    ("gpt", {"cuts": ["blocks.0", "blocks.2.proj"]}),
    ("residual", {"cuts": ["layer1.0", "layer2.0.conv1"]}),
    ("branches", {"cuts": ["down2", "middle"]}),
    ("odd", {"cuts": ["first", "gate"]}),
]


@pytest.mark.parametrize(("name", "partition"), CASES)
def test_stages_read_as_they_should(name: str, partition: dict[str, object]) -> None:
    spec = spec_from_mapping(
        {
            "model": {"file": str(TESTS / "models" / f"{name}.py")},
            "devices": {"count": 3, "profile": "cpu-core"},
            "partition": partition,
        },
        "test",
    )
    planned = plan_model(spec)
    text = stages_source(planned.coarse, planned.plan, "digest")
    assert max(map(len, text.splitlines())) <= 100
    ast.parse(text)
    ast.parse(train_source(planned.plan))
    again = plan_model(spec)
    assert stages_source(again.coarse, again.plan, "digest") == text
    golden = TESTS / "golden" / f"{name}_stages.py.txt"
    if os.environ.get("DNIC_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
