"""A share of the zoo through the whole compiler, each model proven; `make models` runs all."""

from __future__ import annotations

from pathlib import Path

import pytest

from studies.compilation import Compilation, compiled
from studies.zoo import FOLDER, NAMED, cases

# Libraries warn of what is to come in their own next versions.
pytestmark = pytest.mark.filterwarnings("default")


def compilation(name: str, stages: int, folder: Path) -> Compilation:
    (case,) = (case for case in cases([name]) if case.name == name)
    return compiled(case, stages, folder / "bundle")


@pytest.mark.parametrize(
    ("name", "stages", "shared"),
    [
        ("gpt2+labels", 4, 1),
        ("llama_masked+labels", 8, 0),
        ("bert", 4, 0),
        ("albert", 3, 17),
        ("t5+labels", 3, 1),
        ("mixtral", 4, 0),
        ("mamba", 2, 1),
        ("vit", 8, 0),
        ("resnet18", 4, 0),
        ("densenet121", 2, 0),
        ("unet", 3, 0),
        ("custom_function", 4, 0),
        ("embedding_twice", 4, 1),
        ("frozen_backbone", 2, 0),
        ("dict_output", 2, 0),
    ],
)
def test_stages_are_the_model(tmp_path: Path, name: str, stages: int, shared: int) -> None:
    result = compilation(name, stages, tmp_path)
    assert result.error == ""
    assert result.outcome == "proven"
    assert result.stages == stages
    assert result.shared == shared
    # No gradient goes back into a frozen backbone.
    through = 0 if name == "frozen_backbone" else stages - 1
    assert sum(crossing.differentiable > 0 for crossing in result.crossings) >= through
    assert result.whole == {} or name in ("mamba", "mixtral")


def test_layer_drop_is_kept_whole(tmp_path: Path) -> None:
    result = compilation("wav2vec2", 2, tmp_path)
    assert result.outcome == "proven"
    (path,) = result.whole
    assert path == "wav2vec2.encoder"
    assert "modeling_wav2vec2.py" in result.whole[path]


def test_a_branch_on_data_in_the_model_itself_is_refused(tmp_path: Path) -> None:
    result = compilation("deberta_v2_unset", 2, tmp_path)
    assert result.outcome == "refused"
    assert "modeling_deberta_v2.py" in result.error
    assert not (tmp_path / "bundle").exists()


def test_every_model_of_the_named_set_is_there() -> None:
    files = {path.stem for path in FOLDER.glob("*.py")}
    assert set(NAMED) <= files
    assert len(NAMED) == len(set(NAMED))
    assert len(files) >= len(NAMED) + 30
