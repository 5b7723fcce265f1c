"""What every operation of a graph costs, computed from its FLOPs and bytes.

torch's profiler measures what a model took on the machine at hand; a plan is often made for another
machine, and before anything has run there. A roofline (`DeviceProfile.busy_us`) with a fixed cost
for each operation is good enough to balance stages. It knows nothing of caches, of kernels that are
slow for their shape, or of operations that torch fuses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from dnic.cost.optimizer import UpdateRule, update_rule, update_us
from dnic.cost.profile import DeviceProfile
from dnic.errors import DnicError
from dnic.graph.graph import Graph, Operation

_MATMUL_LIKE = (
    "matmul",
    "mm",
    "bmm",
    "addmm",
    "baddbmm",
    "einsum",
    "linear",
    "bilinear",
    "conv1d",
    "conv2d",
    "conv3d",
    "conv_transpose1d",
    "conv_transpose2d",
    "conv_transpose3d",
    "scaled_dot_product_attention",
)
_FREE_KINDS = ("input", "attribute", "output")


@dataclass(frozen=True)
class Costs:
    """Costs of a graph's operations, one entry for each, at the traced batch size.

    Attributes:
        operations: names, in the graph's order.
        forward_us, backward_us: microseconds of one batch.
        update_us: microseconds of the optimizer's step on the parameters that the operation is the
            first to use.
        activation_bytes: bytes that are kept from forward to backward.
        parameter_bytes, gradient_bytes, optimizer_bytes: of those same parameters.
        profile: the device.
    """

    operations: tuple[str, ...]
    forward_us: tuple[float, ...]
    backward_us: tuple[float, ...]
    update_us: tuple[float, ...]
    activation_bytes: tuple[int, ...]
    parameter_bytes: tuple[int, ...]
    gradient_bytes: tuple[int, ...]
    optimizer_bytes: tuple[int, ...]
    profile: DeviceProfile

    @property
    def total_us(self) -> tuple[float, ...]:
        """Microseconds of one training step of each operation: forward, backward, update."""
        parts = zip(self.forward_us, self.backward_us, self.update_us, strict=True)
        return tuple(map(sum, parts))

    @property
    def memory_bytes(self) -> tuple[int, ...]:
        """Bytes that training keeps for each operation."""
        columns = (
            self.activation_bytes,
            self.parameter_bytes,
            self.gradient_bytes,
            self.optimizer_bytes,
        )
        return tuple(map(sum, zip(*columns, strict=True)))

    def check(self, graph: Graph) -> None:
        """Check one entry for each operation of `graph`, all finite and none negative.

        Raises:
            DnicError: an entry is missing, negative or not a number; the costs are attached.
        """
        if self.operations != tuple(op.name for op in graph.operations):
            raise DnicError("the costs are not those of the graph's operations", where=str(self))
        for name, column in self._columns().items():
            if len(column) != len(self.operations):
                raise DnicError(
                    f"{name} has {len(column)} entries for {len(self.operations)} operations",
                    where=str(self.operations),
                )
            for op, entry in zip(self.operations, column, strict=True):
                if not 0 <= entry < float("inf"):
                    raise DnicError(f"{name} of {op} is {entry}", where=str(self))

    def _columns(self) -> dict[str, tuple[float, ...]]:
        skipped = ("operations", "profile")
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name not in skipped}

    def __str__(self) -> str:
        columns = self._columns()
        width = max((len(name) for name in self.operations), default=0)
        lines = [f"costs on {self.profile.name}"]
        lines.append(" " * width + "".join(f"{name:>18}" for name in columns))
        for row in zip(self.operations, *columns.values(), strict=True):
            cells = (f"{v:>18.1f}" if isinstance(v, float) else f"{v:>18}" for v in row[1:])
            lines.append(f"{row[0]:<{width}}" + "".join(cells))
        return "\n".join(lines)


def cost_model(
    graph: Graph,
    profile: DeviceProfile,
    optimizer: str = "AdamW",
    options: Mapping[str, Any] | None = None,
) -> Costs:
    """What each operation of `graph` costs on a device.

    Forward is one overhead and the roofline of FLOPs and bytes moved. Backward computes the
    gradient of each differentiable input and of the parameters: each as much work as forward for
    matrix products and for operations with parameters, at most two; one walk through the same
    bytes for everything else; nothing where no gradient flows.

    Args:
        graph: with FLOPs and bytes at the traced batch size.
        profile: the device.
        optimizer: name of a `torch.optim` class.
        options: its keyword arguments.
    """
    rule = update_rule(optimizer, options)
    owned = _owned_parameters(graph)
    parameter_bytes = tuple(nbytes for nbytes, _ in owned)
    trained = _trained_bytes(graph, parameter_bytes)
    return Costs(
        operations=tuple(op.name for op in graph.operations),
        forward_us=tuple(_forward_us(op, profile) for op in graph.operations),
        backward_us=tuple(_backward_us(op, graph, profile) for op in graph.operations),
        update_us=tuple(
            _update_us(rule, nbytes, tensors, profile)
            for nbytes, (_, tensors) in zip(trained, owned, strict=True)
        ),
        activation_bytes=tuple(_activation_bytes(op) for op in graph.operations),
        parameter_bytes=parameter_bytes,
        gradient_bytes=trained,
        optimizer_bytes=tuple(rule.state * nbytes for nbytes in trained),
        profile=profile,
    )


def _update_us(rule: UpdateRule, nbytes: int, tensors: int, profile: DeviceProfile) -> float:
    return update_us(rule, nbytes, tensors, profile) if nbytes else 0.0


def _forward_us(op: Operation, profile: DeviceProfile) -> float:
    if op.kind in _FREE_KINDS:
        return 0.0
    return profile.operation_us(op.forward_flops, op.bytes_moved)


def _backward_us(op: Operation, graph: Graph, profile: DeviceProfile) -> float:
    if op.kind in _FREE_KINDS or not _gradient_flows(op, graph):
        return 0.0
    if not (op.parameters or op.target.rpartition(".")[2] in _MATMUL_LIKE):
        return profile.operation_us(0, op.bytes_moved)
    gradients = sum(_differentiable(graph.by_name[name]) for name in op.inputs)
    gradients += bool(op.parameters)
    busy = profile.busy_us(op.forward_flops, op.bytes_moved)
    return profile.overhead_us + min(gradients, 2) * busy


def _gradient_flows(op: Operation, graph: Graph) -> bool:
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


def _owned_parameters(graph: Graph) -> list[tuple[int, int]]:
    """For each operation bytes and number of the parameters that it is the first to use.

    A parameter that is fetched on its own (`attribute`) counts where it is first used: a cut
    between the two leaves it to the side that uses it. Sizes of single parameters are not known,
    so an operation that shares some of its parameters counts the others by their number.
    """
    first_user = {name: op.name for op in reversed(graph.operations) for name in op.inputs}
    owned = dict.fromkeys((op.name for op in graph.operations), (0, 0))
    seen: set[str] = set()
    for op in graph.operations:
        names = set(op.parameters)
        new = len(names - seen)
        if new == 0:
            continue
        seen |= names
        owner = first_user.get(op.name, op.name) if op.kind == "attribute" else op.name
        nbytes, tensors = owned[owner]
        owned[owner] = (nbytes + op.parameter_bytes * new // len(names), tensors + new)
    return list(owned.values())


def _trained_bytes(graph: Graph, parameter_bytes: tuple[int, ...]) -> tuple[int, ...]:
    """Bytes of the parameters that receive a gradient."""
    return tuple(
        nbytes if _gradient_flows(op, graph) else 0
        for op, nbytes in zip(graph.operations, parameter_bytes, strict=True)
    )
