"""The cost of single operations against hand-computed figures."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dnic.cost import Costs, DeviceProfile, Link, cost_model
from dnic.errors import DnicError
from dnic.graph.graph import Graph, Operation, Value

# 1 us for 1000 FLOPs or 100 bytes, 5 us of overhead.
DEVICE = DeviceProfile(
    name="d",
    flops_per_s=1e9,
    bytes_per_s=1e8,
    overhead_us=5,
    message_bytes_per_s=1e9,
    link=Link(bandwidth_bytes_per_s=1e9, latency_us=1),
)


def op(
    name: str,
    inputs: tuple[str, ...] = (),
    kind: str = "function",
    target: str = "torch.relu",
    differentiable: bool = True,
    tensor: bool = True,
    parameters: tuple[str, ...] = (),
    parameter_bytes: int = 0,
    flops: int = 0,
    moved: int = 0,
) -> Operation:
    value = Value(name, ("B", 10), "float32", 400, differentiable) if tensor else None
    return Operation(
        name,
        kind,  # type: ignore[arg-type]  # a literal that the caller wrote
        target,
        inputs=inputs,
        value=value,
        parameters=parameters,
        parameter_bytes=parameter_bytes,
        forward_flops=flops,
        bytes_moved=moved,
    )


def costs_of(*operations: Operation, optimizer: str = "SGD") -> Costs:
    graph = Graph("Net", 10, operations)
    costs = cost_model(graph, DEVICE, optimizer)
    costs.check(graph)
    return costs


X = op("x", kind="input", differentiable=False)
H = op("h", ("x",), parameters=("h",), parameter_bytes=40)


@pytest.mark.parametrize(
    ("operation", "forward_us", "backward_us"),
    [
        # Bytes dominate: 10 us; gradient of the input walks through the same bytes.
        (op("a", ("h",), flops=2000, moved=1000), 15, 15),
        # A linear layer: gradients of its input and of its parameters, 20 us each.
        (op("a", ("h",), parameters=("w",), flops=20_000, moved=100), 25, 45),
        # The first layer of a model: no gradient of the data is needed.
        (op("a", ("x",), parameters=("w",), flops=20_000, moved=100), 25, 25),
        # A product of two activations, and of an activation with data.
        (op("a", ("h", "g"), target="torch.matmul", flops=20_000), 25, 45),
        (op("a", ("h", "x"), target="torch.matmul", flops=20_000), 25, 25),
        # Attention has three inputs, but its backward is counted as two forwards.
        (op("a", ("h", "g", "k"), target="torch.nn.functional.scaled_dot_product_attention",
            flops=20_000), 25, 45),
        # No gradient flows.
        (op("a", ("x",), differentiable=False, moved=1000), 15, 0),
        # A tuple of tensors has a gradient when an input has.
        (op("a", ("h",), tensor=False, moved=1000), 15, 15),
        (op("a", ("x",), tensor=False, moved=1000), 15, 0),
        # Nothing is computed.
        (op("a", kind="input", moved=1000), 0, 0),
        (op("a", ("h",), kind="output", moved=1000), 0, 0),
        (op("a", kind="attribute", moved=1000), 0, 0),
    ],
)  # fmt: skip
def test_one_operation(operation: Operation, forward_us: float, backward_us: float) -> None:
    others = (X, H, op("g", ("x",), parameters=("g",)), op("k", ("x",), parameters=("k",)))
    costs = costs_of(*others, operation)
    assert (costs.forward_us[-1], costs.backward_us[-1]) == (forward_us, backward_us)


def test_a_parameter_counts_once_at_its_first_use() -> None:
    """`w` is fetched early and first used by `a`; `b` brings `v` beside it: half of its bytes."""
    costs = costs_of(
        X,
        op("w", kind="attribute", parameters=("w",), parameter_bytes=80),
        op("idle", ("x",)),
        op("a", ("idle", "w")),
        op("b", ("a",), parameters=("w", "v"), parameter_bytes=160),
        op("c", ("b", "w")),
    )
    assert costs.parameter_bytes == (0, 0, 0, 80, 80, 0)
    assert costs.gradient_bytes == (0, 0, 0, 80, 80, 0)


def test_frozen_parameters_have_neither_gradient_nor_optimizer() -> None:
    costs = costs_of(
        X,
        op("a", ("x",), differentiable=False, parameters=("w",), parameter_bytes=80),
        optimizer="Adam",
    )
    assert costs.parameter_bytes[1] == 80
    assert (costs.gradient_bytes[1], costs.optimizer_bytes[1], costs.update_us[1]) == (0, 0, 0)


@pytest.mark.parametrize(
    ("optimizer", "options", "state"),
    [
        ("SGD", {}, 0),
        ("SGD", {"momentum": 0.9}, 1),
        ("Adam", {}, 2),
        ("AdamW", {"fused": True}, 2),
        ("RMSprop", {}, 1),
        ("Adagrad", {}, 1),
        ("Unheard", {}, 2),
    ],
)
def test_optimizers(optimizer: str, options: dict[str, object], state: int) -> None:
    graph = Graph("Net", 10, (X, replace(H, parameter_bytes=4000)))
    costs = cost_model(graph, DEVICE, optimizer, options)
    assert costs.optimizer_bytes == (0, state * 4000)
    sgd = cost_model(graph, DEVICE, "SGD").update_us[1]
    # Three walks through 4000 bytes at 100 bytes a microsecond, and one launch.
    assert sgd == pytest.approx(120 + 0.3 * 5)
    if optimizer != "SGD":
        assert costs.update_us[1] > sgd
    fused = cost_model(graph, DEVICE, "AdamW", {"fused": True}).update_us[1]
    assert fused < cost_model(graph, DEVICE, "AdamW").update_us[1]


def test_what_is_kept_for_backward() -> None:
    costs = costs_of(
        X,
        replace(H, bytes_moved=100),
        op("view", ("h",), moved=0),
        op("mask", ("x",), differentiable=False, moved=100),
    )
    assert costs.activation_bytes == (0, 400, 0, 0)
    assert costs.memory_bytes == (0, 400 + 40 + 40, 0, 0)


def test_totals_and_the_printed_table() -> None:
    costs = costs_of(X, replace(H, forward_flops=1000))
    assert costs.total_us[1] == costs.forward_us[1] + costs.backward_us[1] + costs.update_us[1]
    lines = str(costs).splitlines()
    assert lines[0] == "costs on d"
    assert lines[1].split()[:2] == ["forward_us", "backward_us"]
    assert lines[3].split()[:3] == ["h", "6.0", "6.0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"forward_us": (0.0, -1.0)}, "forward_us of h is -1"),
        ({"update_us": (0.0, float("nan"))}, "update_us of h is nan"),
        ({"backward_us": (0.0, float("inf"))}, "backward_us of h is inf"),
        ({"activation_bytes": (0,)}, "activation_bytes has 1 entries for 2 operations"),
        ({"operations": ("x", "other")}, "not those of the graph's operations"),
    ],
)
def test_the_checker(changes: dict[str, tuple[float, ...]], message: str) -> None:
    graph = Graph("Net", 10, (X, H))
    costs = cost_model(graph, DEVICE)
    with pytest.raises(DnicError, match=message):
        replace(costs, **changes).check(graph)
