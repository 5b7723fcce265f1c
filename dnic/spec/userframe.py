"""Which line of the user's own code an exception comes from.

A traceback runs through torch and through us; the user wants the deepest line in the folder of the
model file, installed packages left out.
"""

from __future__ import annotations

from pathlib import Path
from traceback import extract_tb


def shown_path(path: Path) -> str:
    """The path as messages show it: relative to the working folder when it lies in it."""
    absolute = path.absolute()
    here = Path.cwd()
    return str(absolute.relative_to(here) if absolute.is_relative_to(here) else path)


def user_line(error: BaseException, path: Path) -> str:
    """`file:line` of the deepest frame in the folder of `path`; the file alone without one."""
    if isinstance(error, SyntaxError) and error.filename and _own(error.filename, path):
        return f"{shown_path(Path(error.filename))}:{error.lineno or 1}"
    frames = [f for f in extract_tb(error.__traceback__) if _own(f.filename, path)]
    if not frames:
        return shown_path(path)
    return f"{shown_path(Path(frames[-1].filename))}:{frames[-1].lineno}"


def _own(filename: str, path: Path) -> bool:
    file = Path(filename)
    return file == path or (file.is_relative_to(path.parent) and "site-packages" not in file.parts)
