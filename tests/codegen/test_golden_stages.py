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
    ("stream", {"cuts": ["blocks.0", "hidden_1"]}),
    ("tied", {"cuts": ["layers.0", "layers.2"]}),
    ("repeated", {"cuts": ["x_1", "x_3"]}),
    ("averages", {"cuts": ["first", "second"]}),
    ("time_first", {"cuts": ["rnn", "layers.0"]}),
    ("pooled", {"cuts": ["first", "second"]}),
    ("unet", {"cuts": ["down1", "up1"]}),
    ("tiny_llama", {"stages": 2}),
    ("tiny_gpt2", {"stages": 2}),
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
    assert [line for line in text.splitlines() if len(line) > 100] == []
    ast.parse(text)
    ast.parse(train_source(planned.plan))
    again = plan_model(spec)
    assert stages_source(again.coarse, again.plan, "digest") == text
    golden = TESTS / "golden" / f"{name}_stages.py.txt"
    if os.environ.get("DNIC_UPDATE_GOLDEN"):
        golden.write_text(text)
    assert text == golden.read_text()
