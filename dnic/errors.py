"""Every error that dnic raises for a user's mistake.

Each says what was wrong, where, what was expected and what to do. The command line prints exactly
that and ends with the error's exit status; a bare traceback is a bug of ours. This module imports
nothing, so that every room, `runtime` included, may use it.
"""

from __future__ import annotations


class DnicError(Exception):
    """A mistake that the user can mend.

    Args:
        problem: what was wrong, in one sentence without a final full stop.
        where: `file:line`, the key's path, or the dotted path of a module.
        expected: what would have been right.
        hint: what to do about it.
    """

    kind = "error"
    exit_status = 2

    def __init__(
        self,
        problem: str,
        *,
        where: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(problem)
        self.problem = problem
        self.where = where
        self.expected = expected
        self.hint = hint

    def __str__(self) -> str:
        details = (("where", self.where), ("expected", self.expected), ("try", self.hint))
        lines = [f"{self.kind}: {self.problem}"]
        lines += [f"  {label + ':':<10}{text}" for label, text in details if text]
        return "\n".join(lines)


class SpecError(DnicError):
    """A spec, or a command-line option that stands for a key of it, is wrong."""

    kind = "spec error"


class TraceError(DnicError):
    """The model file or the model cannot be captured."""

    kind = "trace error"


class PartitionError(DnicError):
    """No partition satisfies what was asked for."""

    kind = "partition error"


class VerifyError(DnicError):
    """A rung of the proof ladder failed: the stages do not compute what the model computes."""

    kind = "verify error"
    exit_status = 1


class RuntimeFault(DnicError):
    """A bundle cannot run, or a rank failed while it ran."""

    kind = "runtime fault"
