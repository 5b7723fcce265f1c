"""What would only fail when a run starts, tried before a bundle is written.

Every predictor is built once as the runtime builds it, from the bundle's own plan: a source that
somebody registered may refuse any interface, and nobody knows until it is asked. That it can learn
there is not tried. Models without weights (`--meta`) are left out, because their heads may be too
large for this machine.
"""

from __future__ import annotations

import torch

from dnic.errors import PartitionError, RuntimeFault
from dnic.partition.plan import PlannedTraining
from dnic.runtime.foresight import foreseeable
from dnic.runtime.loss import Loss, own_loss
from dnic.runtime.plan import AWAITED, InterfacePlan, Plan
from dnic.runtime.setting import Setting, build_predictor


def check_predictors(plan: Plan, loss: Loss | None) -> None:
    """Build what predicts at every interface, and throw it away.

    Args:
        plan: as the bundle has it.
        loss: the model file's; None for a model that computes its own.

    Raises:
        PartitionError: names the interface, and what its source says.
    """
    setting = Setting(
        plan.target, plan.output, loss or own_loss, torch.device("cpu"), plan.train.seed
    )
    for interface in plan.interfaces:
        if interface.differentiable and interface.predictor not in AWAITED:
            with torch.random.fork_rng(devices=[]):
                _build(interface, setting)


def _build(interface: InterfacePlan, setting: Setting) -> None:
    where = f"interfaces.{interface.name}"
    try:
        build_predictor(interface, setting)
    except RuntimeFault as error:
        raise PartitionError(
            error.problem, where=where, expected=error.expected, hint=error.hint
        ) from error
    except Exception as error:  # whatever the code of a registered source raises
        said = f"{type(error).__name__}: {error}".rstrip(": ")
        raise PartitionError(
            f"the gradient source {interface.predictor} cannot be built here: {said}",
            where=where,
            expected="a source that reads "
            + ", ".join(f"{t.name} {list(t.shape)}" for t in interface.differentiable),
            hint="gradient: synthetic, or a cut elsewhere",
        ) from error


def check_foresight(plan: Plan, training: PlannedTraining) -> None:
    """Refuse to predict weights that an optimizer's momentum says nothing of.

    Raises:
        PartitionError: names the interface and the optimizer.
    """
    optimizer = training.optimizer
    for interface in plan.interfaces:
        if interface.predict_weights and not foreseeable(optimizer.name, optimizer.options):
            raise PartitionError(
                f"the weights of {optimizer.name} cannot be predicted",
                where=f"interfaces.{interface.name}.predict_weights",
                expected="SGD with momentum, Adam or AdamW",
                hint="predict_weights: false",
            )
