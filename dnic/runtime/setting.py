"""What predictors are built with, and the predictor of an interface."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dnic.errors import RuntimeFault
from dnic.runtime.guardplan import no_beginning
from dnic.runtime.loss import Loss
from dnic.runtime.microbatches import Returned, whole
from dnic.runtime.plan import AWAITED, HeadPlan, InterfacePlan, Mode, Plan, Size, TargetPlan
from dnic.runtime.predictor import PredictionStatistics, Predictor
from dnic.runtime.registry import PredictorRequest, predictor_kind
from dnic.runtime.replicas import Replicas
from dnic.runtime.seeds import head_seed


@dataclass(frozen=True)
class Setting:
    """What all predictors of a run are built with.

    Attributes:
        target: what the targets are; None when nothing is known of them.
        output: planned shape of the model's output, where it is one tensor.
        loss: the model file's.
        device: where predictors live.
        seed: of the run.
        replicas: of the stage, which learn together.
    """

    target: TargetPlan | None
    output: tuple[Size, ...] | None
    loss: Loss
    device: torch.device
    seed: int
    replicas: Replicas = Replicas()  # noqa: RUF009  # frozen


def build_predictor(plan: InterfacePlan, setting: Setting) -> Predictor:
    """What predicts the gradients of an interface.

    Raises:
        RuntimeFault: there is no such kind, it cannot be built for this interface, or it cannot
            learn in several replicas of a stage together.
    """
    kind = predictor_kind(plan.predictor)
    if plan.predicted_at_first and kind.needs_gradients:
        raise no_beginning(plan.warmup, f"plan.yaml: interfaces: {plan.name}")
    if setting.replicas.number > 1 and not kind.replicated:
        raise _alone(plan)
    tensors = range(len(plan.differentiable))
    seeds = tuple(head_seed(setting.seed, plan.source, plan.to, number) for number in tensors)
    return kind.build(
        PredictorRequest(
            tensors=plan.differentiable,
            head=plan.head or HeadPlan(),
            target=setting.target,
            context=plan.context,
            loss=setting.loss,
            output=setting.output,
            device=setting.device,
            seed=seeds[0],
            seeds=seeds,
            replicas=setting.replicas,
        )
    )


def check_replicated(plan: Plan, mode: Mode) -> None:
    """Refuses predictors that cannot learn in replicas, before anything starts.

    The compiler refuses them too; but a plan may be edited, and a run asked for with `--replicas`.

    Raises:
        RuntimeFault: names the interface.
    """
    if mode not in ("decoupled", "oracle") or plan.replicas(mode) == 1:
        return
    for row in plan.interfaces:
        predicted = bool(row.differentiable) and row.gradient not in AWAITED
        if predicted and not predictor_kind(row.gradient).replicated:
            raise _alone(row)


def _alone(plan: InterfacePlan) -> RuntimeFault:
    return RuntimeFault(
        f"{plan.gradient} does not learn in several replicas of a stage together",
        where=f"plan.yaml: interfaces: {plan.name}",
        expected="a source that does (dnic's own do), or replicas: 1 under `schedule`",
        hint="a source of your own averages over PredictorRequest.replicas what it learns from, "
        "and says replicated = True",
    )


def learnt(
    predictor: Predictor, plan: InterfacePlan, parts: Sequence[Returned], weight: float
) -> PredictionStatistics | None:
    """One step of an interface's predictor, on the microbatches of a batch, or of a share of it."""
    batch = whole(plan.differentiable, parts, plan.context)
    predictor.weight, predictor.context = weight, batch.context
    return predictor.learn(batch.tensors, batch.target, batch.gradients)


def weighed(gradients: list[Tensor], weight: float) -> list[Tensor]:
    """Predictions for a replica's share of a batch, whose loss is multiplied by a weight."""
    return gradients if weight == 1 else [gradient * weight for gradient in gradients]
