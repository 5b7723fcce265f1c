"""Bytes that a training step sends, all processes together, where torch sends and nobody counts.

The engine counts what its links send. Torch's schedules send the same tensors in parts; `ddp`
averages gradients around a ring, in which each of n processes sends 2 (n - 1) / n of them (gloo
and NCCL; Patarasuk and Yuan 2009, doi 10.1016/j.jpdc.2008.09.002). Headers, acknowledgements and
the rendezvous are not in these figures; a relay counts them.
"""

from __future__ import annotations

from dnic.bench.variant import Variant
from dnic.graph.shape import Shape, elements
from dnic.partition.plan import Plan
from dnic.runtime.links import dtype_named


def wire_bytes(variant: Variant, plan: Plan) -> int:
    """Bytes of one step, by the plan.

    Args:
        variant: how it is trained.
        plan: of the bundle.
    """
    if not variant.wired:
        return 0
    if variant.mode == "ddp":
        return 2 * (variant.processes - 1) * plan.model.parameter_bytes

    def nbytes(shape: Shape, dtype: str) -> int:
        return elements(shape, plan.train.batch_size) * dtype_named(dtype).itemsize

    # Torch's schedules take the targets from the first stage to the last in one go.
    total = nbytes(plan.target.shape, plan.target.dtype) if plan.target is not None else 0
    for interface in plan.interfaces:
        for tensor in interface.tensors:
            ways = 2 if tensor.differentiable else 1
            total += ways * nbytes(tensor.shape, tensor.dtype)
    return total
