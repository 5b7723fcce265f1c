"""A stage in parts: each replica holds a part of its parameters, gradients and optimizer state.

`schedule: {shard: true}` in plan.yaml, for stages that do not fit one device. torch's FSDP2
(`fully_shard`) divides every parameter along its first axis among the stage's replicas, gathers it
whole before it is needed and sends the gradient back in parts. The stage's blocks are gathered one
after the other (those that `dnic.runtime.recompute` computes again one by one), what is outside of
them together. Buffers stay whole.

Beside torch's own there is here what checkpoints and records want of such parameters: tensors that
are whole, under their original names. An evaluation runs in every column, because each replica's
forward pass needs the parts of the others.

Refused, because torch cannot divide it: parameters without axes, optimizers that look at a
parameter as a whole (Muon, Adafactor), stages under `torch.compile`. Refused, because the engine
keeps copies of whole parameters: late stages (`stale`), and parameters that several stages share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from dnic.errors import RuntimeFault
from dnic.runtime.crossing import crossings
from dnic.runtime.plan import Mode, Plan
from dnic.runtime.recompute import blocks

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor import DTensor

# What they do to one entry of a parameter depends on nothing but that entry.
BY_ENTRY = (
    "SGD",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "Adagrad",
    "Adadelta",
    "ASGD",
)
_WHERE = "plan.yaml: schedule: shard"


def shards(plan: Plan, mode: Mode) -> bool:
    """Whether the replicas of a stage hold parts of it; not where stages run by themselves."""
    return plan.schedule.shard and plan.replicas(mode) > 1 and mode != "alone"


def check_sharding(plan: Plan, mode: Mode) -> None:
    """Refuses what cannot be done with a part of the parameters.

    Raises:
        RuntimeFault: names it.
    """
    if not shards(plan, mode):
        return
    late = crossings(plan, mode).late
    refusals = (
        (plan.train.compile, "torch.compile", "train: compile: false"),
        (
            plan.train.optimizer not in BY_ENTRY,
            f"the optimizer {plan.train.optimizer}",
            ", ".join(BY_ENTRY),
        ),
        (
            any(late),
            f"stage {late.index(max(late))}, whose gradients are late",
            "no stale gradient",
        ),
        (
            bool(plan.shared),
            f"{plan.shared[0].name if plan.shared else ''}, which several stages share",
            "keep_together in the spec's `partition` joins the modules that share it",
        ),
    )
    for met, what, instead in refusals:
        if met:
            raise RuntimeFault(
                f"shard: true cannot go with {what}",
                where=_WHERE,
                expected=instead,
                hint="shard: false keeps every replica whole",
            )


def shard_stage(stage: nn.Module, mesh: DeviceMesh) -> None:
    """Leaves this replica its part of a stage.

    Args:
        stage: on its device, with the same values in every replica; changed.
        mesh: of the stage's replicas.

    Raises:
        RuntimeFault: a parameter cannot be divided.
    """
    from torch.distributed.fsdp import fully_shard

    for name, parameter in stage.named_parameters():
        if parameter.dim() == 0:
            raise RuntimeFault(
                f"shard: true cannot divide {name}, which has no axes",
                where=_WHERE,
                expected="parameters of one axis or more",
                hint="shard: false keeps every replica whole",
            )
    if not any(parameter.requires_grad for parameter in stage.parameters()):
        return
    for block in _apart(stage):
        fully_shard(block, mesh=mesh)
    fully_shard(stage, mesh=mesh)


def is_part(tensor: Tensor) -> bool:
    """Whether a tensor is this replica's part of a larger one."""
    return hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """This replica's part of a tensor, sharing its memory; the tensor itself where it is whole."""
    return cast("DTensor", tensor).to_local() if is_part(tensor) else tensor


def whole(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, gathered where they are parts; all replicas must ask."""
    return {
        name: cast("DTensor", tensor).full_tensor() if is_part(tensor) else tensor
        for name, tensor in tensors.items()
    }


def fill(tensor: Tensor, value: Tensor) -> None:
    """Copies a whole value into a tensor, or its part into this replica's part."""
    if not is_part(tensor):
        tensor.copy_(value)
        return
    from torch.distributed.tensor import distribute_tensor

    own = cast("DTensor", tensor)
    given = value.to(own.device)
    part = distribute_tensor(given, own.device_mesh, own.placements, src_data_rank=None)
    own.to_local().copy_(part.to_local())


def as_parts(state: Mapping[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's `state_dict()` from a checkpoint, in which parts lie as plain tensors.

    Args:
        state: of this replica; what belongs to a whole parameter is left as it is.
        optimizer: that is to load it.
    """
    parameters = [entry for group in optimizer.param_groups for entry in group["params"]]
    made = dict(state)
    made["state"] = {
        index: {key: _as_part(value, parameters[index]) for key, value in entries.items()}
        for index, entries in state["state"].items()
    }
    return made


def _as_part(value: Any, parameter: Tensor) -> Any:
    """A tensor of a part's shape as a part like it; else what was given."""
    if not isinstance(value, Tensor) or not is_part(parameter) or value.dim() == 0:
        return value
    from torch.distributed.tensor import DTensor

    whole_one = cast(DTensor, parameter)
    return DTensor.from_local(
        value.to(whole_one.device),
        whole_one.device_mesh,
        whole_one.placements,
        run_check=False,
        shape=whole_one.shape,
        stride=whole_one.stride(),
    )


def _apart(stage: nn.Module) -> list[nn.Module]:
    """The blocks that are gathered by themselves: none where one's parameters are used elsewhere.

    A parameter that two of them hold would be gathered for one alone.
    """
    found = [block for block in blocks(stage) if block is not stage]
    inside = [id(p) for block in found for p in block.parameters()]
    total = len({id(p) for p in stage.parameters()})
    inner = {id(module) for block in found for module in block.modules()}
    outside = {
        id(p)
        for module in stage.modules()
        if id(module) not in inner
        for p in module.parameters(recurse=False)
    }
    return found if len(inside) + len(outside) == total else []
