"""Learning-rate schedulers: torch's own, stepped alike in every process.

Every process has a scheduler for its own optimizer. All count the same steps and epochs, and know
the same evaluation, so the learning rates are the same without a word between them. Heads keep
their own learning rate. `ReduceLROnPlateau` is told the loss of the first evaluation after each
epoch's training; an epoch that nothing evaluates is refused.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from dnic.errors import RuntimeFault
from dnic.runtime.plan import Interval, LrSchedulerPlan, TrainPlan

_WHERE = "plan.yaml: train: scheduler"


def build_scheduler(plan: LrSchedulerPlan, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """The planned scheduler, for one optimizer.

    Raises:
        RuntimeFault: torch has no such scheduler, or it takes other arguments.
    """
    try:
        return _built(plan.name, plan.options, optimizer)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise RuntimeFault(f"{plan.name} refuses its options: {error}", where=_WHERE) from error


def _built(name: str, options: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> LRScheduler:
    kind = getattr(lr_scheduler, name, None)
    if not (isinstance(kind, type) and issubclass(kind, LRScheduler)) or kind is LRScheduler:
        raise RuntimeFault(
            f"torch.optim.lr_scheduler has no scheduler {name!r}",
            where=_WHERE,
            expected="CosineAnnealingLR, OneCycleLR, SequentialLR, ...",
        )
    given = dict(options)
    if "schedulers" in given:
        # SequentialLR and ChainedScheduler, which join others.
        given["schedulers"] = [
            _built(row["name"], row.get("options") or {}, optimizer) for row in given["schedulers"]
        ]
    return kind(optimizer=optimizer, **given)


class LearningRate:
    """When one process's scheduler is stepped.

    Args:
        scheduler: torch's, or one with its methods; None leaves the learning rate alone.
        interval: after every update (`step`) or every epoch; of no meaning to
            `ReduceLROnPlateau`, which is stepped when an epoch is evaluated.
    """

    def __init__(self, scheduler: LRScheduler | None = None, interval: Interval = "epoch") -> None:
        self.scheduler = scheduler
        self._interval = interval
        self._awaited: int | None = None  # the epoch whose evaluation is to come

    @property
    def needs_evaluation(self) -> bool:
        """Whether it follows the loss of an evaluation."""
        return isinstance(self.scheduler, ReduceLROnPlateau)

    def updated(self) -> None:
        """After every update.

        Raises:
            RuntimeFault: the scheduler has an end, and this is past it.
        """
        if self.scheduler is not None and self._interval == "step" and not self.needs_evaluation:
            self._step(self.scheduler)

    def skipped(self) -> None:
        """After a step without an update: all stages have the learning rate of the same step.

        Raises:
            RuntimeFault: the scheduler has an end, and this is past it.
        """
        with warnings.catch_warnings():
            # Torch expects an update before the first step of a scheduler.
            warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
            self.updated()

    def trained(self, epoch: int) -> None:
        """After an epoch's last update.

        Raises:
            RuntimeFault: the scheduler has an end, and this is past it.
        """
        if self.needs_evaluation:
            self._awaited = epoch
        elif self.scheduler is not None and self._interval == "epoch":
            self._step(self.scheduler)

    def evaluated(self, test_loss: float) -> None:
        """After an evaluation; only the first one after an epoch's training counts."""
        if self._awaited is not None and isinstance(self.scheduler, ReduceLROnPlateau):
            self.scheduler.step(test_loss)
            self._awaited = None

    def check_evaluated(self) -> None:
        """Called before the next epoch, and before a checkpoint.

        Raises:
            RuntimeFault: the loss of an evaluation is needed, and there was none.
        """
        if self._awaited is not None:
            raise RuntimeFault(
                "ReduceLROnPlateau follows the loss of an evaluation, and nothing was evaluated "
                f"after epoch {self._awaited}",
                where="train.py",
                expected="trainer.evaluate(test) after trainer.train(train)",
                hint="another scheduler, or null, under train in plan.yaml",
            )

    def state_dict(self) -> dict[str, Any] | None:
        """What must be remembered beside the optimizer's state."""
        if self.scheduler is None:
            return None
        return {"name": type(self.scheduler).__name__, "state": self.scheduler.state_dict()}

    def load_state_dict(self, kept: Mapping[str, Any] | None) -> None:
        """Restores what `state_dict` returned.

        Raises:
            RuntimeFault: it is of another scheduler. The optimizer's state depends on it, too.
        """
        was = kept["name"] if kept is not None else None
        now = type(self.scheduler).__name__ if self.scheduler is not None else None
        if was != now:
            raise RuntimeFault(
                f"the checkpoint was trained with the scheduler {was}, and plan.yaml says {now}",
                where="--resume",
                expected="the same scheduler",
                hint="dnic export gives its weights to a new run",
            )
        if self.scheduler is not None and kept is not None:
            self.scheduler.load_state_dict(_as_before(kept["state"], self.scheduler.state_dict()))

    def _step(self, scheduler: LRScheduler) -> None:
        try:
            scheduler.step()
        except ValueError as error:
            raise RuntimeFault(
                f"{type(scheduler).__name__} cannot go on: {error}",
                where=_WHERE,
                hint="as many steps as the run has, or another interval",
            ) from error


def planned_learning_rate(plan: TrainPlan, optimizer: torch.optim.Optimizer) -> LearningRate:
    """The planned scheduler, and when it is stepped.

    Raises:
        RuntimeFault: torch has no such scheduler, or it takes other arguments.
    """
    if plan.scheduler is None:
        return LearningRate()
    return LearningRate(build_scheduler(plan.scheduler, optimizer), plan.scheduler.interval)


def _as_before(kept: Any, fresh: Any) -> Any:
    """A scheduler's state with its counters, which a checkpoint keeps as plain mappings."""
    if isinstance(fresh, Counter):
        return Counter(kept)
    if isinstance(fresh, Mapping):
        return {key: _as_before(value, fresh.get(key)) for key, value in kept.items()}
    if isinstance(fresh, list) and len(fresh) == len(kept):
        return [_as_before(*pair) for pair in zip(kept, fresh, strict=True)]
    return kept
