"""The model file: finding its functions, and one clear error for each mistake in it."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from dnic.errors import TraceError
from dnic.spec import ModelFile, ModelSpec, load_model_file

GOOD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layer = nn.Linear(3, width)

def example_inputs():
    return torch.zeros(2, 3)

def loss(output, target):
    return nn.functional.cross_entropy(output, target)
"""
REST = """
import torch
def example_inputs(): return torch.zeros(2, 3)
def loss(output, target): return output.sum()
"""


def golden_cases(file: str) -> list[object]:
    """Cases `=== title`, input, `>>>`, expected text."""
    cases = []
    for block in (Path(__file__).parent / file).read_text().split("=== ")[1:]:
        title, _, rest = block.partition("\n")
        given, _, told = rest.partition(">>>\n")
        cases.append(pytest.param(given, told.rstrip("\n"), id=title))
    return cases


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of each test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(text: str, **names: str) -> ModelFile:
    Path("model.py").write_text(text)
    return load_model_file(Path("model.py"), ModelSpec.model_validate(names))


def model_modules() -> set[str]:
    return {name for name in sys.modules if name.startswith("dnic_model_")}


@pytest.mark.parametrize(("text", "told"), golden_cases("bad_model_files.golden"))
def test_a_bad_file_is_told_exactly(text: str, told: str) -> None:
    before = model_modules(), list(sys.path)
    with pytest.raises(TraceError) as caught:
        load(text)
    assert str(caught.value) == told
    assert (model_modules(), list(sys.path)) == before


@pytest.mark.parametrize(("text", "told"), golden_cases("bad_model_calls.golden"))
def test_a_bad_function_is_told_exactly_when_called(text: str, told: str) -> None:
    Path("broken.py").write_text("\ndef build():\n    raise KeyError('depth')\n")
    rest = "\n".join(line for line in REST.splitlines() if line.partition("(")[0] not in text)
    file = load(text + rest)
    try:
        with pytest.raises(TraceError) as caught:
            file.build_model()
            file.example_inputs()
            assert file.train_data is not None
            file.train_data()
    finally:
        sys.modules.pop("broken", None)
    assert str(caught.value) == told
    assert str(Path.cwd()) not in sys.path


def test_the_convention() -> None:
    file = load(GOOD)
    assert file.path == Path.cwd().resolve() / "model.py"
    model = file.build_model()
    assert type(model).__name__ == "Net"
    assert model is not file.build_model()
    (inputs,) = file.example_inputs()
    assert inputs.shape == (2, 3)
    assert file.loss(torch.zeros(2, 4), torch.tensor([0, 1])).shape == ()
    assert file.train_data is None
    assert file.test_data is None
    assert file.build_model.__name__ == "Net"


def test_the_module_stays_importable_under_its_own_name() -> None:
    file = load(GOOD)
    name = file.module.__name__
    assert sys.modules[name] is file.module
    assert type(file.build_model()).__module__ == name
    assert load(GOOD).module.__name__ == name
    Path("other").mkdir()
    Path("other/model.py").write_text(GOOD)
    assert load_model_file("other/model.py").module.__name__ != name
    assert not list(Path.cwd().rglob("__pycache__"))


def test_a_file_changed_within_a_second_is_read_again() -> None:
    first = load(GOOD)
    second = load(GOOD.replace("width=4", "width=5"))
    widths = [file.build_model().get_parameter("layer.bias").shape[0] for file in (first, second)]
    assert widths == [4, 5]
    assert "width=5" in inspect.getsource(type(second.build_model()))


def test_names_of_the_spec() -> None:
    text = GOOD.replace("loss(", "criterion(").replace("example_inputs", "batch") + (
        "def make(): return Net(7)\ndef held_out(): return [1, 2]\nbuild = make\n"
    )
    file = load(text, build_model="build", loss="criterion", example_inputs="batch")
    assert file.build_model().get_parameter("layer.bias").shape == (7,)
    assert file.build_model.__name__ == "build"
    file = load(text, loss="criterion", example_inputs="batch", test_data="held_out")
    assert file.test_data is not None
    assert file.test_data() == [1, 2]
    assert file.train_data is None


@pytest.mark.parametrize(
    ("role", "name", "hint"),
    [
        ("build_model", "Ner", "Net"),
        ("loss", "los", "loss"),
        ("example_inputs", "example_input", "example_inputs"),
        ("train_data", "zzz", None),
        ("test_data", "losss", "loss"),
    ],
)
def test_a_name_of_the_spec_that_is_not_there(role: str, name: str, hint: str | None) -> None:
    with pytest.raises(TraceError) as caught:
        load(GOOD, **{role: name})
    assert caught.value.problem == f"the model file has no {name}"
    assert caught.value.where == "model.py"
    assert caught.value.hint == hint


def test_a_module_as_loss_and_data_of_any_kind() -> None:
    text = GOOD.replace("def loss(output, target):", "loss = nn.MSELoss()\ndef unused(output):")
    text = text.replace("return nn.functional.cross_entropy(output, target)", "pass")
    file = load(text + "def train_data():\n    return [(1, 2)]\n")
    assert isinstance(file.loss, nn.MSELoss)
    assert file.train_data is not None
    assert file.train_data() == [(1, 2)]


def test_several_example_inputs_and_a_list() -> None:
    text = GOOD.replace("return torch.zeros(2, 3)", "return [torch.zeros(2, 3), torch.ones(2)]")
    inputs = load(text).example_inputs()
    assert isinstance(inputs, tuple)
    assert [tuple(tensor.shape) for tensor in inputs] == [(2, 3), (2,)]


def test_modules_beside_the_file_are_found_at_import_and_later() -> None:
    Path("dnic_test_early.py").write_text("WIDTH = 6\n")
    Path("dnic_test_late.py").write_text("WIDTH = 7\n")
    text = (
        "from torch import nn\nimport dnic_test_early\n"
        "def build_model():\n    import dnic_test_late\n"
        "    return nn.Linear(dnic_test_early.WIDTH, dnic_test_late.WIDTH)\n"
    )
    before = list(sys.path)
    try:
        weight = load(text + REST).build_model().get_parameter("weight")
    finally:
        for name in ("dnic_test_early", "dnic_test_late"):
            sys.modules.pop(name, None)
    assert weight.shape == (7, 6)
    assert sys.path == before


def test_a_failed_import_keeps_the_module_that_was_there() -> None:
    file = load(GOOD)
    with pytest.raises(TraceError):
        load("raise ValueError")
    assert sys.modules[file.module.__name__] is file.module


def test_the_line_is_the_users_own_not_one_of_a_package() -> None:
    packages = Path(".venv/site-packages")
    packages.mkdir(parents=True)
    (packages / "dnic_test_package.py").write_text("def fail():\n    raise OSError('full')\n")
    text = (
        "import sys\nsys.path.append('.venv/site-packages')\n"
        "import dnic_test_package\ndnic_test_package.fail()\n"
    )
    try:
        with pytest.raises(TraceError, match="raised OSError: full") as caught:
            load(text)
    finally:
        sys.modules.pop("dnic_test_package", None)
        sys.path.remove(".venv/site-packages")
    assert caught.value.where == "model.py:4"


def test_the_cause_is_chained() -> None:
    with pytest.raises(TraceError) as caught:
        load("1 / 0")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_no_such_file() -> None:
    Path("model.py").write_text(GOOD)
    with pytest.raises(TraceError) as caught:
        load_model_file(Path("modle.py"))
    assert str(caught.value) == (
        "trace error: no such model file\n"
        "  where:    modle.py\n"
        "  expected: a Python file\n"
        "  try:      model.py"
    )


@pytest.mark.parametrize("name", ["nowhere/model.py", "a\0b.py", "x" * 5000])
def test_no_file_at_all(name: str) -> None:
    with pytest.raises(TraceError) as caught:
        load_model_file(name)
    assert caught.value.expected == "a Python file"


def test_a_folder() -> None:
    Path("examples").mkdir()
    Path("examples/data.py").write_text("")
    Path("examples/model.py").write_text(GOOD)
    with pytest.raises(TraceError) as caught:
        load_model_file("examples")
    assert str(caught.value) == (
        "trace error: the model file is a folder\n"
        "  where:    examples\n"
        "  expected: a Python file\n"
        "  try:      examples/model.py"
    )


def test_no_python_file() -> None:
    Path("model.onnx").write_text("")
    with pytest.raises(TraceError) as caught:
        load_model_file("model.onnx")
    assert str(caught.value) == (
        "trace error: the model file is no Python file\n"
        "  where:    model.onnx\n"
        "  expected: a name that ends in .py"
    )


def test_our_future_imports_do_not_reach_the_file() -> None:
    assert load(GOOD + "width: int = 3\n").module.__annotations__ == {"width": int}


def with_inputs(returned: str) -> ModelFile:
    return load(GOOD.replace("return torch.zeros(2, 3)", f"return {returned}"))


@pytest.mark.parametrize(
    ("returned", "kind"),
    [
        ("torch.zeros(2, 3)", tuple),
        ("[torch.zeros(2, 3), None]", tuple),
        ("{'x': torch.zeros(2, 3), 'scale': 2.0, 'flag': True, 'mode': 'a', 'mask': None}", dict),
        ("({'pair': (torch.zeros(2), [torch.zeros(2)])}, 3)", tuple),
        ("__import__('collections').UserDict(x=torch.zeros(2))", dict),
    ],
)
def test_batches_of_every_form(returned: str, kind: type) -> None:
    assert type(with_inputs(returned).example_inputs()) is kind


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("{}", "returned an empty dict"),
        ("{1: torch.zeros(2)}", "has the key 1"),
        ("{'x': object()}", "returned an object at x"),
        ("(torch.zeros(2), {'a': [set()]})", r"returned a set at position 1\['a'\]\[0\]"),
        ("3", "returned an int"),
    ],
)
def test_batches_of_no_form(returned: str, says: str) -> None:
    with pytest.raises(TraceError, match=says) as caught:
        with_inputs(returned).example_inputs()
    assert "model.py" in (caught.value.where or "")


def test_a_file_without_a_loss_leaves_it_to_the_model() -> None:
    assert load(GOOD.replace("def loss(output, target):", "def other(output):")).loss is None


def test_a_loss_that_is_spelt_otherwise_is_no_missing_loss() -> None:
    with pytest.raises(TraceError, match="the model file has no loss") as caught:
        load(GOOD.replace("def loss(output, target):", "def my_loss(output, target):"))
    assert "rename my_loss to loss" in (caught.value.hint or "")
