"""How a process's part of the model runs forward, as the plan's `train` section says.

Three things can be asked of a forward, independent of how stages work together: `precision`,
`recompute` and `compile`. They are put around the module's own `forward`, from the inside out:
compiled, then recomputed, then autocast. So whoever calls the module (the engine, torch's
schedules, DDP) gets them all, and its hooks, names and parameters stay what they are.
"""

from __future__ import annotations

import torch
from torch import nn

from dnic.runtime.compiled import compiled_forward
from dnic.runtime.links import dtype_named
from dnic.runtime.plan import Plan
from dnic.runtime.precision import autocast_forward, check_precision
from dnic.runtime.recompute import recompute_blocks


def prepare_stage(stage: nn.Module, plan: Plan, index: int, device: torch.device) -> None:
    """Makes a stage run forward as planned.

    Args:
        stage: on its device; its `forward` is replaced.
        plan: of the bundle.
        index: number of the stage.
        device: where it runs.

    Raises:
        RuntimeFault: the machine or the device cannot do what is asked for.
    """
    recompute = plan.train.recompute
    wanted = recompute if isinstance(recompute, bool) else index in recompute
    _prepare(stage, plan, device, sent_dtypes(plan, index), recompute=wanted)


def prepare_model(model: nn.Module, plan: Plan, device: torch.device) -> None:
    """The same for the undivided model, which has no stages to name: `recompute: true` is for it.

    Args:
        model: on its device; its `forward` is replaced.
        plan: of the bundle.
        device: where it runs.

    Raises:
        RuntimeFault: the machine or the device cannot do what is asked for.
    """
    _prepare(model, plan, device, None, recompute=plan.train.recompute is True)


def sent_dtypes(plan: Plan, index: int) -> tuple[torch.dtype, ...] | None:
    """The dtypes of a stage's outputs; None at the last stage, whose output is the model's own."""
    if index == len(plan.stages) - 1:
        return None
    named = {
        spec.name: dtype_named(spec.dtype)
        for interface in plan.interfaces
        if interface.source == index
        for spec in (*interface.tensors, *interface.context)
    }
    return tuple(named[name] for name in plan.stages[index].outputs)


def _prepare(
    module: nn.Module,
    plan: Plan,
    device: torch.device,
    sent: tuple[torch.dtype, ...] | None,
    *,
    recompute: bool,
) -> None:
    train = plan.train
    check_precision(train.precision, device)
    if train.compile:
        module.forward = compiled_forward(module.forward, device)
    if recompute:
        # The blocks of a compiled forward are in its graph, where none can be got hold of.
        recompute_blocks(module, whole=train.compile)
    if train.precision != "fp32":
        module.forward = autocast_forward(module.forward, train.precision, device, sent)
