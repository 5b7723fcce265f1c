"""Import a bundle's own `model.py` and `stages.py`, without leaving a trace in this process.

Both files are imported as a run would import them, under their plain names, so that a `model.py`
that leans on a file outside the bundle fails here and not on another machine.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from dnic.errors import VerifyError

NAMES = ("model", "stages")


@contextmanager
def bundle_modules(folder: Path) -> Iterator[tuple[ModuleType, ModuleType]]:
    """The modules `model` and `stages` of a bundle, importable inside the block.

    Raises:
        VerifyError: one of them cannot be imported.
    """
    before = {name: sys.modules.pop(name) for name in NAMES if name in sys.modules}
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    path = str(folder.resolve())
    sys.path.insert(0, path)
    importlib.invalidate_caches()
    try:
        yield _imported("model", folder), _imported("stages", folder)
    finally:
        sys.path.remove(path)
        sys.dont_write_bytecode = writes
        for name in NAMES:
            sys.modules.pop(name, None)
        sys.modules.update(before)


def _imported(name: str, folder: Path) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        raise VerifyError(
            f"{name}.py of the bundle cannot be imported: {type(error).__name__}: {error}",
            where=str(folder / f"{name}.py"),
            expected="a model file that needs installed packages only, no files beside it",
        ) from error
