"""What one optimizer step costs, from the bytes of the parameters.

`torch.optim` runs an update as a chain of element-wise operations, so that its time is how often
it walks through memory. The walks are counted in the parameters' own bytes and were measured with
torch 2.13 on one CPU thread against a large addition (8 million float32 in 8 tensors). Classes
that are not listed are taken to cost as much as Adam.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dnic.cost.profile import DeviceProfile


@dataclass(frozen=True)
class UpdateRule:
    """One `torch.optim` class.

    Attributes:
        passes: memory traffic of a step, in bytes of the parameters.
        launches: cost of a step for one tiny tensor, in overheads of an operation.
        state: bytes that the optimizer keeps, in bytes of the parameters.
    """

    passes: float
    launches: float
    state: int


_ADAM = UpdateRule(passes=20.0, launches=4.0, state=2)
_FUSED_ADAM = UpdateRule(passes=5.0, launches=0.7, state=2)
_RULES = {
    "SGD": UpdateRule(passes=3.0, launches=0.3, state=0),
    "RMSprop": UpdateRule(passes=13.0, launches=2.0, state=1),
    "Adagrad": UpdateRule(passes=12.0, launches=2.5, state=1),
}
_MOMENTUM = UpdateRule(passes=5.0, launches=1.0, state=1)


def update_rule(name: str, options: Mapping[str, Any] | None = None) -> UpdateRule:
    """The rule for a `torch.optim` class by name and its keyword arguments."""
    options = options or {}
    if name == "SGD" and options.get("momentum"):
        return _MOMENTUM
    if name in ("Adam", "AdamW") and options.get("fused"):
        return _FUSED_ADAM
    return _RULES.get(name, _ADAM)


def update_us(rule: UpdateRule, nbytes: int, tensors: int, profile: DeviceProfile) -> float:
    """Microseconds of one step over `tensors` parameters of `nbytes` bytes together."""
    overhead = rule.launches * tensors * profile.overhead_us
    return overhead + profile.busy_us(0, rule.passes * nbytes)
