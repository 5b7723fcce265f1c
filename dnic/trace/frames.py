"""Where in the user's code the model is, and what the user called a result there.

An operation named `add_7` says nothing; the user wrote `hidden = hidden + residual`. Python keeps
the position of every instruction (PEP 657), so the statement that a call belongs to can be found in
the source, and with it the name on its left. Only where the call is the whole right-hand side: the
parts of a longer expression have no name.
"""

from __future__ import annotations

import ast
import itertools
import linecache
import sys
from functools import lru_cache
from pathlib import Path
from types import FrameType

import torch

TORCH_FOLDER = str(Path(torch.__file__).parent)
OWN_FOLDER = str(Path(__file__).parent.parent)

Extent = tuple[tuple[int, int], tuple[int, int]]
Position = tuple[int | None, int | None, int | None, int | None]


def is_users(file: str) -> bool:
    """Whether a source file is neither torch's nor ours."""
    return not file.startswith((TORCH_FOLDER, OWN_FOLDER, "<")) and "contextlib" not in file


def user_frame() -> FrameType | None:
    """The innermost frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if is_users(frame.f_code.co_filename):
            return frame
        frame = frame.f_back
    return None


def user_line() -> str:
    """`file:line` of that frame."""
    frame = user_frame()
    return f"{frame.f_code.co_filename}:{frame.f_lineno}" if frame else "unknown:0"


def padded_to_length() -> bool:
    """Whether torch's `pad_packed_sequence` runs with a `total_length`.

    It then looks at the longest sequence only to check that it is not longer.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and not is_users(frame.f_code.co_filename):
        if frame.f_code.co_name == "pad_packed_sequence":
            return frame.f_locals.get("total_length") is not None
        frame = frame.f_back
    return False


def assigned_names() -> tuple[str, ...]:
    """Names that the user's statement assigns the running call's result to.

    Returns:
        `("x",)` for `x = f()`, `("q", "k", "v")` for `q, k, v = f()`; empty where the result has no
        name of its own or the source is not to be had.
    """
    frame = user_frame()
    if frame is None:
        return ()
    code = frame.f_code
    positions = itertools.islice(code.co_positions(), frame.f_lasti // 2, None)
    line, end_line, column, end_column = next(positions, (None, None, None, None))
    key = (line, column, end_line, end_column)
    return _assignments(code.co_filename).get(key, ())


def only_checks() -> bool:
    """Whether the user's running expression is the test of an `assert`, or of an `if` that raises.

    Such a test decides nothing but whether the model goes on.
    """
    frame = user_frame()
    if frame is None:
        return False
    positions = itertools.islice(frame.f_code.co_positions(), frame.f_lasti // 2, None)
    line, end_line, column, end_column = next(positions, (None, None, None, None))
    if line is None or end_line is None or column is None or end_column is None:
        return False
    at = ((line, column), (end_line, end_column))
    return any(
        at == statement or (test[0] <= at[0] and at[1] <= test[1])
        for statement, test in _checks(frame.f_code.co_filename)
    )


@lru_cache(maxsize=512)
def _checks(file: str) -> tuple[tuple[Extent, Extent], ...]:
    """Where a file's `assert`s and its `if`s that only raise lie, and where their tests do.

    Python takes the truth of a test at the place of the test or of the whole statement.
    """
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return ()
    found = []
    for statement in ast.walk(tree):
        if isinstance(statement, ast.Assert) or (
            isinstance(statement, ast.If)
            and not statement.orelse
            and all(isinstance(inner, ast.Raise) for inner in statement.body)
        ):
            found.append((_extent(statement), _extent(statement.test)))
    return tuple(found)


@lru_cache(maxsize=512)
def _assignments(file: str) -> dict[Position, tuple[str, ...]]:
    """Assigned names by the position of the right-hand side, for a whole file."""
    try:
        tree = ast.parse("".join(linecache.getlines(file)))
    except (SyntaxError, ValueError):
        return {}
    found: dict[Position, tuple[str, ...]] = {}
    for statement in ast.walk(tree):
        names: tuple[str, ...] = ()
        value: ast.expr | ast.stmt | None = None
        if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
            names, value = _names(statement.targets[0]), statement.value
        elif isinstance(statement, ast.AugAssign):
            names, value = _names(statement.target), statement
        if names and value is not None:
            at = (value.lineno, value.col_offset, value.end_lineno, value.end_col_offset)
            found[at] = names
    return found


def _extent(node: ast.stmt | ast.expr) -> Extent:
    end = (node.end_lineno or node.lineno, node.end_col_offset or 0)
    return (node.lineno, node.col_offset), end


def _names(target: ast.expr) -> tuple[str, ...]:
    if isinstance(target, ast.Name):
        return (target.id,)
    if isinstance(target, ast.Tuple) and all(isinstance(e, ast.Name) for e in target.elts):
        return tuple(e.id for e in target.elts if isinstance(e, ast.Name))
    return ()
