"""The options of a tail: what `head:` may say beside what all heads have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from dnic.errors import RuntimeFault

Targets = Literal["auto", "full", "sampled", "clustered"]
LossChoice = Literal["auto", "model"]


@dataclass(frozen=True)
class TailOptions:
    """How a tail is scored.

    Attributes:
        targets: `full` scores all classes, `sampled` some of them, `clustered` all in two levels,
            `auto` some where there are more than 1,024.
        loss: `auto` is cross-entropy for classes and the squared error of standardised values;
            `model` the model file's `loss(output, target)`, for which the tail ends in the shape
            of the model's output.
        task: weight of that loss beside the match with the true gradient; 0 leaves the match alone.
    """

    targets: Targets = "auto"
    loss: LossChoice = "auto"
    task: float = 1.0

    @classmethod
    def read(cls, options: Mapping[str, Any]) -> TailOptions:
        """From what plan.yaml says.

        Raises:
            RuntimeFault: a value is not one of those above.
        """
        found = cls(**options)
        for key, value, known in (
            ("targets", found.targets, get_args(Targets)),
            ("loss", found.loss, get_args(LossChoice)),
        ):
            if value not in known:
                raise RuntimeFault(
                    f"{key} cannot be {value!r}",
                    where="plan.yaml: interfaces: head",
                    expected=", ".join(known),
                )
        number = isinstance(found.task, int | float) and not isinstance(found.task, bool)
        if not number or not 0 <= found.task < float("inf"):
            raise RuntimeFault(
                f"task cannot be {found.task!r}",
                where="plan.yaml: interfaces: head",
                expected="a number of at least 0",
            )
        return found
