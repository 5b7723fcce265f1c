"""What a tail is to end in: the targets that it is scored against, and where they lie.

A tail (`dnic.runtime.tail`) ends in logits, values or something of the shape of the model's own
output; for each position of a crossing tensor where every position has a target, else once for a
sample. Complex targets are not handled.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from dnic.errors import RuntimeFault
from dnic.runtime.head_context import MOST_SLOTS, Values
from dnic.runtime.head_layout import Layout
from dnic.runtime.plan import Size, TargetPlan, resolve
from dnic.runtime.tail_options import TailOptions, Targets

# With more classes `targets: auto` scores each target against a sample of them.
MOST_CLASSES = 1024
# With fewer there is nothing to cluster.
FEWEST_CLUSTERED = 3


@dataclass(frozen=True)
class Aim:
    """What a tail's loss compares with.

    Attributes:
        kind: `classes`; `sampled` and `clustered`, the same with too many of them; `values`; or
            `model`, the model's loss on an output like the model's.
        shape: of one sample's targets; of one sample's output where the kind is `model`.
        classes: how many, where there are.
    """

    kind: Literal["classes", "sampled", "clustered", "values", "model"]
    shape: tuple[int, ...]
    classes: int = 0

    @classmethod
    def of(
        cls,
        target: TargetPlan | None,
        options: TailOptions,
        output: tuple[Size, ...] | None,
        where: str = "plan.yaml",
    ) -> Aim:
        """The aim of the tail of an interface.

        Args:
            target: what the targets are.
            options: of the tail.
            output: planned shape of the model's output, where it is one tensor.
            where: the interface, for messages.

        Raises:
            RuntimeFault: there are no targets that suit it, or no output where that is needed.
        """
        if options.loss == "model":
            if not output or output[0] != "B":
                raise RuntimeFault(
                    "the model's output is not one tensor with the batch first",
                    where=f"{where}: head: loss",
                    expected="loss: auto, which scores the targets by a loss of dnic's own",
                )
            return cls("model", resolve(output, 1)[1:])
        if target is None or target.dtype.startswith("complex") or 0 in target.sample_shape:
            raise RuntimeFault(
                "a tail needs targets: of classes, or real numbers",
                where=where,
                hint="head: {loss: model}, which takes the model file's loss, or another source",
            )
        misfit = targets_misfit(options.targets, target.classes)
        if misfit:
            raise RuntimeFault(misfit, where=where, hint="head: {targets: auto}")
        if target.classes is None:
            return cls("values", target.sample_shape)
        if options.targets == "clustered":
            return cls("clustered", target.sample_shape, target.classes)
        many = options.targets == "auto" and target.classes > MOST_CLASSES
        if many or options.targets == "sampled":
            return cls("sampled", target.sample_shape, target.classes)
        return cls("classes", target.sample_shape, target.classes)

    def aligned(self, layout: Layout) -> bool:
        """Whether every position of a tensor of this layout has a target of its own."""
        positions = layout.positions
        if not positions:
            return False
        if self.kind == "model":
            sizes = self.shape[1:] if layout.channels_first else self.shape[:-1]
            return positions in (sizes, self.shape)
        if self.kind == "values":
            return bool(Values(self.shape, layout).positions)
        alike = self.shape == positions or prod(self.shape) > MOST_SLOTS
        return len(self.shape) == len(positions) and alike

    def exact(self, layout: Layout) -> bool:
        """Whether those positions are the targets', so that nothing has to be resized."""
        return layout.positions in (self.shape, self.shape[:-1], self.shape[1:])

    @property
    def slots(self) -> int:
        """Classes to tell for a sample where positions have none; many share one answer."""
        count = prod(self.shape)
        return count if count <= MOST_SLOTS else 1


def targets_misfit(targets: Targets, classes: int | None) -> str:
    """Why targets of so many classes (None: real values) cannot be scored so; empty when they can.

    Args:
        targets: of `TailOptions`.
        classes: of the targets.
    """
    if targets in ("auto", "full"):
        return ""
    if classes is None:
        return f"targets: {targets} is of classes, and the targets are real values"
    if targets == "clustered" and classes < FEWEST_CLUSTERED:
        return f"targets: clustered has nothing to cluster in {classes} classes"
    return ""
