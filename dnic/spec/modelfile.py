"""The user's model file, imported, with its functions found and guarded.

`importlib` alone would leave a cached `__pycache__` in the user's folder, would not find modules
beside the file, and would answer a mistake with a traceback through our code. Here every mistake in
the file becomes a `TraceError` that names the line of the user's own code.

The file is run: it is the user's program, unlike the spec. Modules beside it are imported under
their plain names, so one process must not load two model files whose folders hold different
modules of the same name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from torch import Tensor, nn

from dnic.errors import TraceError
from dnic.spec.nearest import nearest
from dnic.spec.spec import ModelSpec
from dnic.spec.userframe import shown_path, user_line

T = TypeVar("T")

_PREFIX = "dnic_model_"
_PLAIN = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class ModelFile:
    """What a model file offers.

    All functions but `loss` raise `TraceError` when the user's code fails; their `__name__` is the
    name under which the file offers them.

    Attributes:
        path: the file, resolved.
        module: the file as imported; in `sys.modules` under its own name.
        build_model: makes the model, anew at every call.
        example_inputs: one batch: a tuple of positional arguments, even when the file returns a
            single tensor, or a dictionary of keyword arguments.
        loss: `loss(output, target)`, the user's own object; None when the model computes its own.
        train_data, test_data: a `Dataset` of (input, target), or of mappings; None when the file
            has none.
    """

    path: Path
    module: ModuleType
    build_model: Callable[[], nn.Module]
    example_inputs: Callable[[], tuple[Any, ...] | dict[str, Any]]
    loss: Callable[..., Any] | None
    train_data: Callable[[], Any] | None
    test_data: Callable[[], Any] | None


def load_model_file(path: Path | str, names: ModelSpec | None = None) -> ModelFile:
    """Import a model file and find its functions; none of them is called yet.

    Args:
        path: the file.
        names: the names of the functions; those of the convention when None.

    Raises:
        TraceError: no such Python file, it fails on import, or a function is missing.
    """
    given = Path(path)
    source = _source(given)
    resolved = given.resolve()
    with _registered(resolved) as module:
        _run(source, module, resolved)
        functions = _Functions(resolved, module, names or ModelSpec())
        return ModelFile(
            path=resolved,
            module=module,
            build_model=functions.build_model(),
            example_inputs=functions.example_inputs(),
            loss=functions.loss(),
            train_data=functions.data("train_data"),
            test_data=functions.data("test_data"),
        )


def is_model_file(module: str) -> bool:
    """Whether a module of that name is a model file that was loaded here."""
    return module.startswith(_PREFIX)


def _source(path: Path) -> bytes:
    try:
        _check_path(path)
        return path.read_bytes()
    except OSError as error:
        problem = f"cannot read the model file: {error.strerror}"
        raise TraceError(problem, where=shown_path(path), expected="a Python file") from error


def _check_path(path: Path) -> None:
    shown = shown_path(path)
    expected = "a Python file"
    if path.is_dir():
        files = sorted(p.name for p in path.glob("*.py"))
        file = "model.py" if "model.py" in files else next(iter(files), None)
        hint = shown_path(path / file) if file else None
        raise TraceError("the model file is a folder", where=shown, expected=expected, hint=hint)
    if not path.is_file():
        beside = nearest(path.name, (p.name for p in path.parent.glob("*.py")))
        hint = shown_path(path.parent / beside) if beside else None
        raise TraceError("no such model file", where=shown, expected=expected, hint=hint)
    if path.suffix != ".py":
        raise TraceError(
            "the model file is no Python file", where=shown, expected="a name that ends in .py"
        )


@contextmanager
def _registered(path: Path) -> Iterator[ModuleType]:
    """An empty module in `sys.modules`, under a name of this path's own; removed on failure."""
    digest = hashlib.sha256(str(path).encode()).hexdigest()[:8]
    name = f"{_PREFIX}{digest}_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise TraceError("the model file cannot be imported", where=shown_path(path))
    before = sys.modules.get(name)
    sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        yield sys.modules[name]
    except BaseException:
        del sys.modules[name]
        if before is not None:
            sys.modules[name] = before
        raise


def _run(source: bytes, module: ModuleType, path: Path) -> None:
    """Run the file. Not through its loader, which would take stale bytecode of a changed file."""
    with _running(path, "the model file"):
        exec(compile(source, str(path), "exec", dont_inherit=True), module.__dict__)


@contextmanager
def _running(path: Path, what: str) -> Iterator[None]:
    """The user's code runs in here: its folder can be imported from, its failures are explained."""
    folder = str(path.parent)
    sys.path.insert(0, folder)
    try:
        yield
    except TraceError:
        raise
    except (Exception, SystemExit) as error:
        raise _explained(error, path, what) from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)


def _explained(error: BaseException, path: Path, what: str) -> TraceError:
    said = error.msg if isinstance(error, SyntaxError) else str(error)
    message = said.strip().partition("\n")[0]
    hint = None
    if isinstance(error, SystemExit):
        hint = 'put what is to run as a program under `if __name__ == "__main__":`'
    if isinstance(error, ModuleNotFoundError) and error.name:
        hint = f"install {error.name.partition('.')[0]} where dnic runs, or put it beside the file"
    return TraceError(
        f"{what} raised {type(error).__name__}" + (f": {message}" if message else ""),
        where=user_line(error, path),
        expected="code that runs",
        hint=hint,
    )


@dataclass(frozen=True)
class _Functions:
    """Finds and guards the functions of one imported file."""

    path: Path
    module: ModuleType
    names: ModelSpec

    def build_model(self) -> Callable[[], nn.Module]:
        name, function = self.names.build_model, self.find("build_model", optional=True)
        if function is None:
            name, function = self.only_class()

        def check(model: Any) -> nn.Module:
            if not isinstance(model, nn.Module):
                self.refuse(f"{name}() returned {_kind(model)}", "a torch.nn.Module", function)
            return model

        return self.guarded(name, function, check)

    def example_inputs(self) -> Callable[[], tuple[Any, ...] | dict[str, Any]]:
        name, function = self.names.example_inputs, self.find("example_inputs")
        expected = "one batch: a tensor, a tuple of tensors, or a mapping of keyword arguments"

        def check(inputs: Any) -> tuple[Any, ...] | dict[str, Any]:
            batch = (inputs,) if isinstance(inputs, Tensor) else inputs
            if not isinstance(batch, tuple | list | Mapping) or not batch:
                self.refuse(f"{name}() returned {_kind(batch)}", expected, function)
            given = dict(batch) if isinstance(batch, Mapping) else tuple(batch)
            for key in given if isinstance(given, dict) else ():
                if not isinstance(key, str):
                    self.refuse(f"{name}() has the key {key!r}", expected, function)
            for place, entry in _entries(given):
                if not isinstance(entry, (Tensor, *_PLAIN)):
                    self.refuse(f"{name}() returned {_kind(entry)} at {place}", expected, function)
            return given

        return self.guarded(name, function, check)

    def loss(self) -> Callable[..., Any] | None:
        if self.names.loss is None:
            return None
        function: Callable[..., Any] | None = self.find("loss", optional=True)
        if function is None:
            near = self.nearest("loss") if not vars(self.module).get("loss") else None
            if near is not None and "loss" in near:
                self.missing("loss", "loss")
            return None
        if inspect.isclass(function):
            expected = "a function loss(output, target) that returns a scalar tensor"
            hint = f"{self.names.loss} = {function.__name__}()"
            self.refuse(f"{self.names.loss} is a class", expected, function, hint)
        return function

    def data(self, role: str) -> Callable[[], Any] | None:
        function = self.find(role, optional=True)
        if function is None:
            return None
        return self.guarded(getattr(self.names, role), function, lambda value: value)

    def find(self, role: str, optional: bool = False) -> Any:
        """The function for a role; None when it is optional, missing and not named by the spec."""
        name = getattr(self.names, role)
        found = vars(self.module).get(name)
        if found is None:
            if optional and name == role:
                return None
            self.missing(role, name)
        if not callable(found) or (role != "loss" and isinstance(found, nn.Module)):
            self.refuse(f"{name} is {_kind(found)}", f"a function {_SIGNATURES[role]}", found)
        if role != "loss" and (needed := _required_arguments(found)):
            problem = f"{name}() needs {', '.join(needed)}"
            self.refuse(problem, "a function that takes no arguments", found)
        return found

    def missing(self, role: str, name: str) -> NoReturn:
        """Complain about a missing function, with the nearest one that the file defines."""
        raise TraceError(
            f"the model file has no {name}",
            where=shown_path(self.path),
            expected=_SIGNATURES[role].replace(role, name, 1),
            hint=self.renamed(name) if name == role else self.nearest(name),
        )

    def nearest(self, name: str) -> str | None:
        members = vars(self.module).items()
        return nearest(name, (n for n, v in members if callable(v) and not n.startswith("_")))

    def renamed(self, name: str) -> str | None:
        found = self.nearest(name)
        return f"rename {found} to {name}" if found else None

    def only_class(self) -> tuple[str, type[nn.Module]]:
        """The one module class of the file that can be made without arguments, and its name."""
        classes = {
            value: name
            for name, value in vars(self.module).items()
            if inspect.isclass(value)
            and issubclass(value, nn.Module)
            and value.__module__ == self.module.__name__
        }
        ready = [c for c in classes if not _required_arguments(c)]
        if len(ready) == 1:
            return classes[ready[0]], ready[0]
        if not classes:
            self.missing("build_model", "build_model")
        if ready:
            problem = f"no build_model, and several classes: {', '.join(c.__name__ for c in ready)}"
        else:
            needs = [f"{c.__name__} needs {', '.join(_required_arguments(c))}" for c in classes]
            problem = f"no build_model, and no class without arguments: {'; '.join(needs)}"
        raise TraceError(
            problem,
            where=shown_path(self.path),
            expected=_SIGNATURES["build_model"],
            hint=self.renamed("build_model")
            or f"def build_model(): return {(ready or list(classes))[-1].__name__}(...)",
        )

    def guarded(
        self, name: str, function: Callable[[], Any], check: Callable[[Any], T]
    ) -> Callable[[], T]:
        """The function with failures explained and its result checked."""

        @wraps(function, updated=())
        def call() -> T:
            with _running(self.path, f"{name}()"):
                return check(function())

        call.__name__ = name
        return call

    def refuse(self, problem: str, expected: str, culprit: Any, hint: str = "") -> NoReturn:
        """Complain, at the line of the function where that is known."""
        code = getattr(culprit, "__code__", None)
        known = code is not None and Path(code.co_filename) == self.path
        line = f":{code.co_firstlineno}" if known and code is not None else ""
        raise TraceError(
            problem, where=shown_path(self.path) + line, expected=expected, hint=hint or None
        )


_SIGNATURES = {
    "build_model": "build_model() -> nn.Module, or one nn.Module class without arguments",
    "example_inputs": "example_inputs() -> one batch, a tuple or a mapping of tensors",
    "loss": "loss(output, target) -> a scalar tensor",
    "train_data": "train_data() -> a Dataset of (input, target) or of mappings",
    "test_data": "test_data() -> a Dataset of (input, target) or of mappings",
}


def _required_arguments(function: Callable[..., Any]) -> list[str]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [p.name for p in parameters if p.default is p.empty and p.kind not in kinds]


def _entries(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """Every leaf of a batch with its place: `position 0`, `image['mask']`."""
    if not isinstance(value, tuple | list | Mapping):
        yield place, value
        return
    pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
    for key, entry in pairs:
        top = key if isinstance(key, str) else f"position {key}"
        yield from _entries(entry, f"{place}[{key!r}]" if place else top)


def _kind(value: Any) -> str:
    """What a value is, in a message: `nothing`, `a Linear`, `an empty tuple`."""
    if value is None:
        return "nothing"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if isinstance(value, tuple | list | dict) and not value:
        return f"an empty {type(value).__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOaeio' else 'a'} {name}"
