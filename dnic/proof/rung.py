"""What one rung of the proof ladder found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from math import isfinite
from typing import Any


@dataclass(frozen=True)
class Errors:
    """The largest absolute difference of each kind of figure; None where there were none.

    Attributes:
        outputs: of what the model returns.
        gradients: of its parameters' gradients.
        buffers: of its buffers after the pass.
    """

    outputs: float | None = None
    gradients: float | None = None
    buffers: float | None = None

    def __str__(self) -> str:
        kinds = ((kind.name, getattr(self, kind.name)) for kind in fields(self))
        return ", ".join(f"{name} {error:.1e}" for name, error in kinds if error is not None)


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
        errors: the largest difference of each kind of figure, where there are several kinds.
        batch_sizes: numbers of samples that were tried.
        modes: of `train` and `eval`, those that were tried.
    """

    name: str
    passed: bool | None
    max_abs_error: float
    tolerance: float
    compared: int
    detail: str
    failures: tuple[str, ...] = ()
    errors: Errors | None = None
    batch_sizes: tuple[int, ...] = ()
    modes: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """For `--json`: everything but the name; null for what is no finite number."""
        content = asdict(self)
        del content["name"]
        content["max_abs_error"] = _finite(self.max_abs_error)
        for key in ("failures", "batch_sizes", "modes"):
            content[key] = list(content[key])
        if self.errors is not None:
            content["errors"] = {
                kind: _finite(error) for kind, error in asdict(self.errors).items()
            }
        return content


def ladder(rungs: Sequence[Rung]) -> dict[str, Any]:
    """`{"rungs": {name: {...}}, "passed": bool}`; a rung that could not be tried does not fail."""
    return {
        "rungs": {rung.name: rung.as_dict() for rung in rungs},
        "passed": all(rung.passed is not False for rung in rungs),
    }


def _finite(error: float | None) -> float | None:
    return error if error is not None and isfinite(error) else None
