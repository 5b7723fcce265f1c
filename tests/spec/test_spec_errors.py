"""What a user reads when a spec is wrong: the whole text, from `bad_specs.golden`."""

from __future__ import annotations

from pathlib import Path

import pytest

from dnic.errors import SpecError
from dnic.spec import Spec, SpecErrors, load_spec, override, spec_from_mapping, spec_from_text


def golden_cases(file: str) -> list[object]:
    """Cases `=== title`, input, `>>>`, expected text."""
    cases = []
    for block in (Path(__file__).parent / file).read_text().split("=== ")[1:]:
        title, _, rest = block.partition("\n")
        given, _, told = rest.partition(">>>\n")
        cases.append(pytest.param(given, told.rstrip("\n"), id=title))
    return cases


@pytest.mark.parametrize(("text", "told"), golden_cases("bad_specs.golden"))
def test_bad_spec_is_told_exactly(text: str, told: str) -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_text(text, "spec.yaml")
    assert str(caught.value) == told


def test_attributes_are_those_of_the_first_problem() -> None:
    with pytest.raises(SpecErrors) as caught:
        spec_from_text("train: {epochs: 0}\ndevices: {kind: cdua}\n", "spec.yaml")
    first, second = caught.value.problems
    assert (first.where, second.where) == ("spec.yaml:1", "spec.yaml:2")
    assert (caught.value.problem, caught.value.where) == (first.problem, first.where)
    assert second.hint == "cuda"


def test_problems_come_in_the_order_of_the_file() -> None:
    with pytest.raises(SpecErrors) as caught:
        spec_from_text("devices: {count: 0}\ntrain: {epochs: 0}\nmodel: {loss: 1}\n", "s")
    assert [p.where for p in caught.value.problems] == ["s:1", "s:2", "s:3"]


def test_a_mapping_is_named_by_its_origin() -> None:
    with pytest.raises(SpecError) as caught:
        spec_from_mapping({"train": {"epochs": 0}}, "plan.yaml")
    assert caught.value.where == "plan.yaml"


@pytest.mark.parametrize(
    "value", [0, -1, True, "two", None, 1.5, pytest.param(10**5000, id="10**5000")]
)
def test_an_option_is_named_as_typed(value: object) -> None:
    with pytest.raises(SpecError) as caught:
        override(Spec(), "devices.count", value, option="--devices")
    assert caught.value.where == "--devices"
    assert caught.value.problem.startswith("devices.count cannot be ")
    assert caught.value.expected is not None
    assert caught.value.expected.startswith("a whole number of at least 1")


def test_devices_0() -> None:
    with pytest.raises(SpecError) as caught:
        override(Spec(), "devices.count", 0, option="--devices")
    assert str(caught.value) == (
        "spec error: devices.count cannot be 0\n"
        "  where:    --devices\n"
        "  expected: a whole number of at least 1"
    )


def test_an_option_must_agree_with_the_rest_of_the_spec() -> None:
    spec = spec_from_mapping({"partition": {"cuts": ["layer1"]}}, "s")
    assert override(spec, "partition.stages", 2, option="--stages").partition.stages == 2
    with pytest.raises(SpecError, match=r"partition\.stages is 3, but the cuts make 2") as caught:
        override(spec, "partition.stages", 3, option="--stages")
    assert caught.value.where == "--stages"


def test_another_optimizer_must_take_the_arguments_of_the_first() -> None:
    options = {"name": "AdamW", "betas": [0.9, 0.99]}
    spec = spec_from_mapping({"train": {"optimizer": options}}, "s")
    with pytest.raises(SpecError, match=r"unknown key train\.optimizer\.betas"):
        override(spec, "train.optimizer.name", "SGD", option="--optimizer")


def test_no_such_file(tmp_path: Path) -> None:
    (tmp_path / "digits.yaml").write_text("")
    with pytest.raises(SpecError) as caught:
        load_spec(tmp_path / "digit.yaml")
    assert caught.value.problem == "no such spec file"
    assert caught.value.where == str(tmp_path / "digit.yaml")
    assert caught.value.hint == "digits.yaml"


@pytest.mark.parametrize(
    ("content", "problem", "line"),
    [
        (b"train: {}\n# caf\xe9\n", "not UTF-8 text", ":2"),
        (b"train: {}\n\0", "not valid YAML: a character that YAML does not allow", ":2"),
        (b"#" * (2**18 + 1), "the spec is too large", ""),
        (b"train: {seed: " + b"9" * 5000 + b"}", "train.seed cannot be read as !!int", ":1"),
    ],
)
def test_no_yaml_file(tmp_path: Path, content: bytes, problem: str, line: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert caught.value.problem == problem
    assert caught.value.where == f"{path}{line}"


@pytest.mark.parametrize("name", ["", "a\0b", "x" * 5000])
def test_no_readable_file(tmp_path: Path, name: str) -> None:
    with pytest.raises(SpecError, match="cannot read the spec"):
        load_spec(tmp_path / name)
