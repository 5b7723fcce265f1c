"""The rooms of dnic import in one direction, and a machine that only trains needs little.

    errors < spec < trace < graph < cost < schedule < partition < codegen
    runtime, beside them, knows only errors; proof, report and bench, in this order, know all of
    these; compiler, and asked, which reads the command line for cli, may import everything; probe
    runs some of the compiler's passes, and arguments and probing are parts of cli

Imports are read from the source, so that those inside functions and under `TYPE_CHECKING` count.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

COMPILE_TIME = ("spec", "trace", "graph", "cost", "schedule", "partition", "codegen")
BUILT = {*COMPILE_TIME, "errors", "runtime"}
EVERYTHING = BUILT | {"proof", "report", "bench"}

# Which rooms each room may import, besides itself and the bare package, which holds the version.
MAY_IMPORT: dict[str, set[str]] = {
    "": set(),
    "errors": set(),
    "runtime": {"errors"},
    **{room: {"errors", *COMPILE_TIME[:i]} for i, room in enumerate(COMPILE_TIME)},
    "proof": BUILT,
    "report": BUILT | {"proof"},
    "bench": BUILT | {"proof", "report", "compiler"},
    "probe": BUILT | {"proof", "report", "compiler"},
    "compiler": EVERYTHING,
    "asked": EVERYTHING,
    "arguments": set(),
    "probing": EVERYTHING | {"compiler", "asked", "arguments", "probe"},
    "cli": EVERYTHING | {"compiler", "asked", "arguments", "probing"},
    "__main__": {"cli"},
}
MAY_IMPORT["codegen"].add("runtime")
# Links and heads are measured as they run.
MAY_IMPORT["cost"].add("runtime")

NOT_ON_A_TRAINING_MACHINE = {"pydantic", "networkx", "typer", "graphviz"}
FORBIDDEN_PACKAGES = {"partition": {"yaml"}, "runtime": NOT_ON_A_TRAINING_MACHINE}
LONGEST_MODULE = 400


def imported_modules(source: str, package: tuple[str, ...]) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything imported by a module of `package`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) + 1 - node.level] if node.level else ()
            parts = [*base, *(node.module.split(".") if node.module else ())]
            for alias in node.names:
                yield node.lineno, ".".join([*parts, alias.name])


def violations(root: Path) -> list[str]:
    """What is wrong with the imports of the package in the folder `root`, one line for each."""
    names = {"", *(path.stem for path in root.iterdir())} - {"__init__"}
    found = []
    for path in sorted(root.rglob("*.py")):
        inside = path.relative_to(root).with_suffix("").parts
        room = "" if inside == ("__init__",) else inside[0]
        package = ("dnic", *inside[:-1])
        for line, module in imported_modules(path.read_text("utf-8"), package):
            top, _, rest = module.partition(".")
            where = f"{path.relative_to(root)}:{line}"
            if top in FORBIDDEN_PACKAGES.get(room, set()):
                found.append(f"{where}: {room} imports {top}")
            if top != "dnic":
                continue
            other = rest.partition(".")[0]
            if other not in names:
                other = ""  # A name that the package itself defines.
            if room not in MAY_IMPORT:
                found.append(f"{where}: {room} is not a room that this test knows")
            elif other not in {"", room, *MAY_IMPORT[room]}:
                found.append(f"{where}: {room} imports {other}")
    return found


def too_long(root: Path) -> list[str]:
    """Modules of more than 400 lines."""
    lengths = {path: len(path.read_text("utf-8").splitlines()) for path in root.rglob("*.py")}
    return [
        f"{path.relative_to(root)}: {length} lines"
        for path, length in sorted(lengths.items())
        if length > LONGEST_MODULE
    ]


@pytest.fixture
def package(project: Path) -> Path:
    return project / "dnic"


def test_imports_point_one_way(package: Path) -> None:
    assert violations(package) == []


def test_modules_are_short(package: Path) -> None:
    assert too_long(package) == []


def test_every_room_is_known(package: Path) -> None:
    rooms = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert rooms - {"__pycache__", "__init__"} <= MAY_IMPORT.keys()


def test_the_runtime_needs_no_compiler(package: Path) -> None:
    modules = [
        ".".join(("dnic", *path.relative_to(package).with_suffix("").parts))
        for path in sorted((package / "runtime").rglob("*.py"))
    ]
    script = "\n".join(
        [
            "import sys, importlib",
            f"for name in {modules!r}: importlib.import_module(name.removesuffix('.__init__'))",
            "print(*sys.modules, sep='\\n')",
        ]
    )
    ran = subprocess.run(
        [sys.executable, "-c", script], cwd=package.parent, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    loaded = ran.stdout.split()
    assert "dnic.runtime" in loaded
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(NOT_ON_A_TRAINING_MACHINE)
    own = {name.split(".")[1] for name in loaded if name.startswith("dnic.")}
    assert own <= {"runtime", "errors"}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A small tree in which all is well."""
    modules = {
        "__init__.py": "__version__ = '0'",
        "errors.py": "import os",
        "asked.py": "from dnic import spec, partition",
        "cli.py": "import dnic.compiler\nfrom dnic.asked import requested",
        "compiler.py": "from dnic import __version__, spec, codegen\nfrom dnic.report import table",
        "spec/__init__.py": "from dnic.errors import SpecError",
        "trace/__init__.py": "import torch.fx\nfrom dnic import spec",
        "graph/__init__.py": "from ..trace import capture",
        "graph/deep/shape.py": "from ..size import Size\nfrom ... import __version__",
        "graph/size.py": "from . import deep",
        "cost/__init__.py": "import yaml",
        "partition/__init__.py": "from dnic import __version__",
        "codegen/__init__.py": "import dnic.runtime.engine",
        "runtime/__init__.py": "import dnic.errors, torch\nfrom .engine import Engine",
        "runtime/engine.py": "import yaml\nfrom dnic.runtime import links",
        "proof/__init__.py": "from dnic import codegen, runtime",
        "report/__init__.py": "from dnic.runtime import metrics\nfrom dnic.proof import rung",
        "bench/__init__.py": "from dnic import compiler, report, runtime",
    }
    for name, source in modules.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return tmp_path


def test_the_checker_accepts_a_tree_in_order(tree: Path) -> None:
    assert violations(tree) == []


@pytest.mark.parametrize(
    ("module", "line", "complaint"),
    [
        ("runtime/engine.py", "import dnic.spec", "runtime imports spec"),
        ("runtime/engine.py", "from dnic import partition", "runtime imports partition"),
        ("runtime/engine.py", "from ..graph import shape", "runtime imports graph"),
        ("runtime/engine.py", "from .. import bench", "runtime imports bench"),
        ("runtime/engine.py", "from pydantic import BaseModel", "runtime imports pydantic"),
        ("runtime/engine.py", "def f():\n    import networkx", "runtime imports networkx"),
        ("partition/solve.py", "from yaml import safe_load", "partition imports yaml"),
        ("partition/solve.py", "from dnic.codegen import emit", "partition imports codegen"),
        ("partition/solve.py", "import dnic.runtime", "partition imports runtime"),
        ("trace/capture.py", "from dnic.graph.graph import Graph", "trace imports graph"),
        (
            "spec/spec.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from dnic.cost import device",
            "spec imports cost",
        ),
        ("graph/deep/shape.py", "from ...cost import device", "graph imports cost"),
        ("cost/model.py", "import dnic.compiler as c", "cost imports compiler"),
        ("codegen/train.py", "import dnic.report", "codegen imports report"),
        ("report/table.py", "import dnic.compiler", "report imports compiler"),
        ("report/table.py", "import dnic.cli", "report imports cli"),
        ("bench/run.py", "from dnic.cli import main", "bench imports cli"),
        ("proof/split.py", "from dnic.report import tables", "proof imports report"),
        ("report/table.py", "import dnic.bench", "report imports bench"),
        ("codegen/train.py", "import dnic.proof", "codegen imports proof"),
        ("compiler.py", "import dnic.asked", "compiler imports asked"),
        ("compiler.py", "import dnic.cli", "compiler imports cli"),
        ("errors.py", "from dnic.spec import nearest", "errors imports spec"),
        ("__init__.py", "from dnic.errors import DnicError", " imports errors"),
        ("attic.py", "import dnic.spec", "attic is not a room that this test knows"),
    ],
)
def test_the_checker_sees(tree: Path, module: str, line: str, complaint: str) -> None:
    (tree / module).write_text(line)
    (found,) = violations(tree)
    assert found.startswith(f"{module}:")
    assert found.endswith(f": {complaint}")


def test_the_checker_sees_long_modules(tree: Path) -> None:
    (tree / "spec" / "long.py").write_text("x = 1\n" * 400)
    assert too_long(tree) == []
    (tree / "spec" / "long.py").write_text("x = 1\n" * 401)
    assert too_long(tree) == ["spec/long.py: 401 lines"]
