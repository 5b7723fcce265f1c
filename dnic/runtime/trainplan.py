"""The `train` section of a plan, read and checked: the part that people edit most."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from dnic.errors import RuntimeFault
from dnic.runtime.plan import Interval, LrSchedulerPlan, Plan, Precision, TrainPlan


def read_training(content: Mapping[str, Any]) -> TrainPlan:
    """The section as a frozen value.

    Raises:
        KeyError, TypeError, ValueError: a key is missing or its value has the wrong type.
    """
    recompute = content.get("recompute", False)
    return TrainPlan(
        batch_size=int(content["batch_size"]),
        epochs=int(content["epochs"]),
        seed=int(content.get("seed", 0)),
        optimizer=str(content["optimizer"]["name"]),
        optimizer_options=dict(content["optimizer"].get("options") or {}),
        scheduler=_scheduler(content.get("scheduler")),
        clip_norm=content.get("clip_norm"),
        precision=content.get("precision", "fp32"),
        recompute=tuple(recompute) if isinstance(recompute, list) else recompute,
        compile=content.get("compile", False),
        update_probability=content.get("update_probability", 1.0),
    )


def check_training(train: TrainPlan, stages: int, path: Path) -> None:
    """Checks what a hand edit can break.

    Args:
        train: as read.
        stages: how many there are.
        path: of the plan.

    Raises:
        RuntimeFault: names the key and the values that it may take.
    """
    where = f"{path}: train"
    if train.batch_size < 1 or train.epochs < 0:
        raise RuntimeFault("batch_size must be 1 or more and epochs 0 or more", where=where)
    if train.precision not in get_args(Precision):
        raise RuntimeFault(
            f"precision {train.precision!r} is not known", where=where, expected="fp32, bf16"
        )
    if train.clip_norm is not None and not _is_positive(train.clip_norm):
        raise RuntimeFault(
            f"clip_norm cannot be {train.clip_norm!r}",
            where=where,
            expected="a number above 0, or null",
        )
    if train.scheduler is not None and train.scheduler.interval not in get_args(Interval):
        raise RuntimeFault(
            f"interval {train.scheduler.interval!r} is not known",
            where=f"{where}: scheduler",
            expected="step, epoch",
        )
    if not isinstance(train.recompute, bool) and not _are_stages(train.recompute, stages):
        raise RuntimeFault(
            f"recompute cannot be {_shown(train.recompute)}",
            where=where,
            expected=f"true, false or a list of stages, each from 0 to {stages - 1}",
        )
    if not (_is_positive(train.update_probability) and train.update_probability <= 1):
        raise RuntimeFault(
            f"update_probability cannot be {train.update_probability!r}",
            where=where,
            expected="a number above 0, and at most 1",
        )
    if not isinstance(train.compile, bool):
        raise RuntimeFault(
            f"compile cannot be {train.compile!r}", where=where, expected="true or false"
        )


def check_sparse_updates(plan: Plan, path: Path) -> None:
    """Checks that stages that update by chance are stages that nobody waits for.

    Raises:
        RuntimeFault: an interface waits for every gradient, or stages share parameters.
    """
    if plan.train.update_probability == 1:
        return
    where = f"{path}: train: update_probability"
    for interface in plan.interfaces:
        if interface.differentiable and interface.gradient in ("exact", "stale"):
            raise RuntimeFault(
                f"{interface.name} waits for the gradient of every batch ({interface.gradient}), "
                "which a stage that updates by chance does not have",
                where=where,
                expected="1.0, or predicted gradients at all interfaces",
            )
    if plan.shared:
        raise RuntimeFault(
            f"stages that share parameters ({plan.shared[0].name}) update in every step",
            where=where,
            expected="1.0",
            hint="keep_together in the spec's `partition` joins the modules that share it",
        )


def _scheduler(content: Mapping[str, Any] | None) -> LrSchedulerPlan | None:
    if content is None:
        return None
    return LrSchedulerPlan(
        name=str(content["name"]),
        options=dict(content.get("options") or {}),
        interval=content.get("interval", "epoch"),
    )


def _is_positive(value: object) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0 < float(value) < math.inf


def _are_stages(value: object, stages: int) -> bool:
    return isinstance(value, tuple) and all(
        type(entry) is int and 0 <= entry < stages for entry in value
    )


def _shown(value: object) -> str:
    return str(list(value)) if isinstance(value, tuple) else repr(value)
