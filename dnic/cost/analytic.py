"""What every operation of a graph costs, computed from its FLOPs and bytes.

torch's profiler measures what a model took on the machine at hand; a plan is often made for another
machine, and before anything has run there. A roofline (`DeviceProfile.busy_us`) with a fixed cost
for each operation is good enough to balance stages. It knows nothing of caches, of kernels that are
slow for their shape, or of operations that torch fuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from dnic.cost.costs import Costs
from dnic.cost.optimizer import UpdateRule, update_rule, update_us
from dnic.cost.profile import DeviceProfile
from dnic.graph.graph import Graph, Operation

OperationClass = Literal["matmul", "conv", "attention", "other"]

_CLASSES: dict[str, OperationClass] = {
    **dict.fromkeys(
        ("matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "linear", "bilinear"), "matmul"
    ),
    **dict.fromkeys(
        (
            *("conv1d", "conv2d", "conv3d"),
            *("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
            *("convtranspose1d", "convtranspose2d", "convtranspose3d"),
        ),
        "conv",
    ),
    "scaled_dot_product_attention": "attention",
}
_FREE_KINDS = ("input", "attribute", "output")


@dataclass(frozen=True)
class AnalyticModel:
    """Costs computed from FLOPs and bytes: a `CostModel`.

    Attributes:
        profile: the device.
    """

    profile: DeviceProfile

    def costs(
        self, graph: Graph, optimizer: str = "AdamW", options: Mapping[str, Any] | None = None
    ) -> Costs:
        """Costs of every operation; see `cost_model`."""
        return cost_model(graph, self.profile, optimizer, options)


def cost_model(
    graph: Graph,
    profile: DeviceProfile,
    optimizer: str = "AdamW",
    options: Mapping[str, Any] | None = None,
) -> Costs:
    """What each operation of `graph` costs on a device.

    Forward is one overhead and the roofline of FLOPs and bytes moved, with the efficiency of the
    operation's class. Backward computes the gradient of each differentiable input and of the
    parameters: each as much work as forward for matrix products and for operations with parameters,
    at most two; one walk through the same bytes for everything else; nothing where no gradient
    flows. The overhead does not shrink with the batch, nor does the traffic of parameters where
    memory is what limits.

    Args:
        graph: with FLOPs and bytes at the traced batch size.
        profile: the device.
        optimizer: name of a `torch.optim` class.
        options: its keyword arguments.
    """
    rule = update_rule(optimizer, options)
    owned = owned_parameters(graph)
    parameter_bytes = tuple(nbytes for nbytes, _ in owned)
    trained = _trained_bytes(graph, parameter_bytes)
    forward = [_forward(op, profile) for op in graph.operations]
    backward = [_backward(op, graph, profile) for op in graph.operations]
    return Costs(
        operations=tuple(op.name for op in graph.operations),
        forward_us=tuple(work.time_us for work in forward),
        backward_us=tuple(work.time_us for work in backward),
        update_us=tuple(
            _update_us(rule, nbytes, len(names), profile)
            for nbytes, (_, names) in zip(trained, owned, strict=True)
        ),
        activation_bytes=tuple(_activation_bytes(op) for op in graph.operations),
        parameter_bytes=parameter_bytes,
        gradient_bytes=trained,
        optimizer_bytes=tuple(rule.state * nbytes for nbytes in trained),
        profile=profile,
        forward_fixed_us=tuple(work.fixed_us for work in forward),
        backward_fixed_us=tuple(work.fixed_us for work in backward),
        arithmetic_share=tuple(
            _share(f.arithmetic_us + b.arithmetic_us, f.time_us + b.time_us)
            for f, b in zip(forward, backward, strict=True)
        ),
        memory_share=tuple(
            _share(f.memory_us + b.memory_us, f.time_us + b.time_us)
            for f, b in zip(forward, backward, strict=True)
        ),
        forward_flops=tuple(work.flops for work in forward),
        backward_flops=tuple(work.flops for work in backward),
        forward_bytes=tuple(work.nbytes for work in forward),
        backward_bytes=tuple(work.nbytes for work in backward),
        gradient_tensors=tuple(
            len(names) if nbytes else 0 for nbytes, (_, names) in zip(trained, owned, strict=True)
        ),
    )


def operation_class(op: Operation) -> OperationClass:
    """Which efficiency holds for an operation."""
    if op.kind == "module":
        name = op.module_class.lower().removeprefix("nondynamicallyquantizable")
        return "attention" if "attention" in name else _CLASSES.get(name, "other")
    return _CLASSES.get(op.target.rpartition(".")[2], "other")


class _Work(NamedTuple):
    """One direction of one operation; `time_us` is the overhead and one of the other two."""

    flops: int = 0
    nbytes: int = 0
    time_us: float = 0.0
    fixed_us: float = 0.0
    arithmetic_us: float = 0.0
    memory_us: float = 0.0


def _work(op: Operation, flops: int, nbytes: int, times: int, profile: DeviceProfile) -> _Work:
    """So many walks, each of `flops` and `nbytes`, and one overhead."""
    kind = operation_class(op)
    efficiency = 1.0 if kind == "other" else float(getattr(profile.efficiency, kind))
    busy_us = times * profile.busy_us(flops, nbytes, efficiency)
    by_memory = busy_us > times * profile.busy_us(flops, 0, efficiency)
    fixed_us = profile.overhead_us
    if by_memory:
        fixed_us += times * profile.busy_us(0, min(op.parameter_bytes, nbytes))
    return _Work(
        flops=times * flops,
        nbytes=times * nbytes,
        time_us=profile.overhead_us + busy_us,
        fixed_us=fixed_us,
        arithmetic_us=0.0 if by_memory else busy_us,
        memory_us=busy_us if by_memory else 0.0,
    )


def _forward(op: Operation, profile: DeviceProfile) -> _Work:
    if op.kind in _FREE_KINDS:
        return _Work()
    return _work(op, op.forward_flops, op.bytes_moved, 1, profile)


def _backward(op: Operation, graph: Graph, profile: DeviceProfile) -> _Work:
    if op.kind in _FREE_KINDS or not gradient_flows(op, graph):
        return _Work()
    if not (op.parameters or op.target.rpartition(".")[2] in _CLASSES):
        return _work(op, 0, op.bytes_moved, 1, profile)
    gradients = sum(_differentiable(graph.by_name[name]) for name in op.inputs)
    gradients += bool(op.parameters)
    return _work(op, op.forward_flops, op.bytes_moved, min(gradients, 2), profile)


def _share(part_us: float, whole_us: float) -> float:
    return part_us / whole_us if whole_us else 0.0


def _update_us(rule: UpdateRule, nbytes: int, tensors: int, profile: DeviceProfile) -> float:
    return update_us(rule, nbytes, tensors, profile) if nbytes else 0.0


def gradient_flows(op: Operation, graph: Graph) -> bool:
    """Whether backward has anything to do at an operation."""
    if op.value is not None:
        return op.value.differentiable
    return bool(op.parameters) or any(_differentiable(graph.by_name[n]) for n in op.inputs)


def _differentiable(op: Operation) -> bool:
    """Whether a gradient flows back through what `op` yields; a tuple is taken to have one."""
    if op.value is None:
        return op.kind not in _FREE_KINDS
    return op.value.differentiable


def _activation_bytes(op: Operation) -> int:
    """Its result, kept for backward; a view (nothing moved) shares its input's memory."""
    if op.kind in _FREE_KINDS or op.value is None or not op.value.differentiable:
        return 0
    return op.value.nbytes if op.bytes_moved else 0


def owned_parameters(graph: Graph) -> list[tuple[int, tuple[str, ...]]]:
    """For each operation bytes and names of the parameters that it is the first to use.

    A parameter that is fetched on its own (`attribute`) counts where it is first used: a cut
    between the two leaves it to the side that uses it. Sizes of single parameters are not known,
    so an operation that shares some of its parameters counts the others by their number.
    """
    first_user = {name: op.name for op in reversed(graph.operations) for name in op.inputs}
    owned: dict[str, tuple[int, tuple[str, ...]]] = {op.name: (0, ()) for op in graph.operations}
    seen: set[str] = set()
    for op in graph.operations:
        new = tuple(name for name in dict.fromkeys(op.parameters) if name not in seen)
        if not new:
            continue
        seen.update(new)
        owner = first_user.get(op.name, op.name) if op.kind == "attribute" else op.name
        nbytes, names = owned[owner]
        share = op.parameter_bytes * len(new) // len(set(op.parameters))
        owned[owner] = (nbytes + share, names + new)
    return list(owned.values())


def _trained_bytes(graph: Graph, parameter_bytes: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes of the parameters that receive a gradient."""
    return tuple(
        nbytes if gradient_flows(op, graph) else 0
        for op, nbytes in zip(graph.operations, parameter_bytes, strict=True)
    )
