"""The heads of an interface, built and ready to learn: one for each tensor."""

from __future__ import annotations

import torch

from dnic.runtime.head_axis import batch_axis
from dnic.runtime.head_training import HeadTrainer
from dnic.runtime.heads import HeadSpec, build_head
from dnic.runtime.links import dtype_named
from dnic.runtime.plan import InterfacePlan, TargetPlan
from dnic.runtime.replicas import Replicas
from dnic.runtime.seeds import head_seed


def build_trainers(
    plan: InterfacePlan,
    target: TargetPlan | None,
    device: torch.device,
    seed: int,
    replicas: Replicas | None = None,
) -> list[HeadTrainer]:
    """A head with its trainer for every differentiable tensor of a synthetic interface."""
    head = plan.head
    if head is None:
        raise ValueError("a synthetic interface without a head")  # check_plan has refused it
    spec = HeadSpec(hidden_layers=head.hidden_layers, width=head.width, context=head.context)
    trainers = []
    for number, tensor in enumerate(plan.differentiable):
        axis, sample_shape = batch_axis(tensor.shape)
        built = build_head(
            sample_shape,
            dtype_named(tensor.dtype),
            spec,
            target.classes if target else None,
            target.sample_shape if target else None,
            dtype_named(target.dtype) if target else None,
            seed=head_seed(seed, plan.source, plan.to, number),
        )
        trainers.append(
            HeadTrainer(built.to(device), head.lr, axis, replicas=replicas, one_in=head.one_in)
        )
    return trainers
