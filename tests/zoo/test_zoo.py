"""A share of the zoo through the whole compiler, each model proven; `make models` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.compilation import compiled
from studies.zoo import FOLDER, NAMED, cases

# Libraries warn of what is to come in their own next versions.
pytestmark = pytest.mark.filterwarnings("default")


@pytest.mark.parametrize(
    ("name", "stages", "shared"),
    [
        ("gpt2+labels", 4, 1),
        ("llama_masked+labels", 8, 0),
        ("bert", 4, 0),
        ("albert", 3, None),
        ("t5+labels", 4, None),
        ("mixtral", 4, 0),
        ("mamba", 2, 1),
        ("vit", 8, 0),
        ("resnet18", 4, 0),
        ("densenet121", 2, 0),
        ("unet", 3, 0),
        ("custom_function", 4, 0),
        ("embedding_twice", 2, None),
        ("dict_output", 2, 0),
    ],
)
def test_stages_are_the_model(tmp_path: Path, name: str, stages: int, shared: int | None) -> None:
    (case,) = (case for case in cases([name]) if case.name == name)
    result = compiled(case, stages, tmp_path / "bundle")
    assert result.error == ""
    assert result.stages == stages
    assert result.outcome == "proven"
    assert len(result.crossings) >= stages - 1
    assert all(crossing.differentiable for crossing in result.crossings)
    if shared is None:
        assert result.shared > 0
    else:
        assert result.shared == shared


def test_every_model_of_the_named_set_is_there() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")}
    assert set(NAMED) <= files
    assert len(NAMED) == len(set(NAMED))
    assert len(files) >= len(NAMED) + 30
