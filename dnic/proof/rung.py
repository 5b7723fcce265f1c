"""What one rung of the proof ladder found."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Rung:
    """One rung.

    Attributes:
        name: `split`, `exact` or `oracle`.
        passed: whether all compared figures agree; None when the rung could not be tried.
        max_abs_error: the largest absolute difference seen.
        tolerance: relative to the largest magnitude of the compared tensor.
        compared: how many tensors or losses were compared.
        detail: what was compared, or why the rung could not be tried.
        failures: what differs, worst first.
    """

    name: str
    passed: bool | None
    max_abs_error: float
    tolerance: float
    compared: int
    detail: str
    failures: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: everything but the name."""
        content = asdict(self)
        del content["name"]
        content["failures"] = list(self.failures)
        return content


def ladder(rungs: list[Rung]) -> dict[str, Any]:
    """`{"rungs": {name: {...}}, "passed": bool}`; a rung that could not be tried does not fail."""
    return {
        "rungs": {rung.name: rung.as_dict() for rung in rungs},
        "passed": all(rung.passed is not False for rung in rungs),
    }
