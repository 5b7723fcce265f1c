"""Plans made by hand: a perceptron, a convolutional network with opened blocks, a transformer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest

from dnic.graph.shape import Shape, elements
from dnic.partition.plan import (
    Plan,
    PlannedHead,
    PlannedInterface,
    PlannedModel,
    PlannedOperation,
    PlannedOptimizer,
    PlannedStage,
    PlannedTarget,
    PlannedTensor,
    PlannedTraining,
    Prediction,
)

BATCH = 256
MakePlan = Callable[..., Plan]


def module(
    path: str, kind: str, inputs: Sequence[str], shape: Shape | None, parameters: int = 0
) -> PlannedOperation:
    return PlannedOperation(
        name=path.replace(".", "_"),
        kind="module",
        target=path,
        module=path,
        module_class=kind,
        inputs=tuple(inputs),
        shape=shape,
        parameters=parameters,
    )


def function(
    name: str, target: str, inputs: Sequence[str], shape: Shape | None, inside: str, kind: str
) -> PlannedOperation:
    return PlannedOperation(
        name=name,
        kind="function",
        target=target,
        module=inside,
        module_class=kind,
        inputs=tuple(inputs),
        shape=shape,
    )


def given(name: str, shape: Shape) -> PlannedOperation:
    return PlannedOperation(name=name, kind="input", target=name, shape=shape)


def output(name: str) -> PlannedOperation:
    return PlannedOperation(name="output", kind="output", target="output", inputs=(name,))


def mlp_operations(layers: int) -> list[PlannedOperation]:
    operations = [given("x", ("B", 1, 28, 28))]
    operations.append(module("flatten", "Flatten", ["x"], ("B", 784)))
    width = 784
    for i in range(layers):
        before = operations[-1].name
        names = [f"layers.{i}.{part}" for part in ("linear", "norm", "act")]
        outs = [name.replace(".", "_") for name in names]
        operations += [
            module(names[0], "Linear", [before], ("B", 256), width * 256 + 256),
            module(names[1], "BatchNorm1d", [outs[0]], ("B", 256), 512),
            module(names[2], "ReLU", [outs[1]], ("B", 256)),
        ]
        width = 256
    operations.append(module("head", "Linear", [operations[-1].name], ("B", 10), 2570))
    return [*operations, output("head")]


def residual_operations(blocks: int) -> list[PlannedOperation]:
    shape: Shape = ("B", 64, 8, 8)
    operations = [
        given("images", ("B", 1, 8, 8)),
        module("stem", "Conv2d", ["images"], shape, 640),
    ]
    for i in range(blocks):
        path, start = f"blocks.{i}", operations[-1].name
        base = f"blocks_{i}"
        operations += [
            module(f"{path}.conv1", "Conv2d", [start], shape, 36928),
            module(f"{path}.bn1", "BatchNorm2d", [f"{base}_conv1"], shape, 128),
            function(f"{base}_relu", "torch.relu", [f"{base}_bn1"], shape, path, "ResidualBlock"),
            module(f"{path}.conv2", "Conv2d", [f"{base}_relu"], shape, 36928),
            function(
                f"{base}_add",
                "operator.add",
                [f"{base}_conv2", start],
                shape,
                path,
                "ResidualBlock",
            ),
        ]
    operations += [
        module("pool", "AdaptiveAvgPool2d", [operations[-1].name], ("B", 64, 1, 1)),
        function("flatten", "torch.flatten", ["pool"], ("B", 64), "", "DigitsNet"),
        module("classifier", "Linear", ["flatten"], ("B", 10), 650),
    ]
    return [*operations, output("classifier")]


def transformer_operations(layers: int) -> list[PlannedOperation]:
    shape: Shape = ("B", 64, 256)
    operations = [
        given("tokens", ("B", 64)),
        module("embed", "Embedding", ["tokens"], shape, 65536),
        module("rotary", "RotaryEmbedding", ["tokens"], (64, 32)),
    ]
    for i in range(layers):
        before = operations[-1].name if i else "embed"
        operations.append(module(f"blocks.{i}", "Block", [before, "rotary"], shape, 789760))
    operations.append(module("norm", "LayerNorm", [operations[-1].name], shape, 512))
    operations.append(module("lm_head", "Linear", ["norm"], ("B", 64, 256), 65792))
    return [*operations, output("lm_head")]


def crossing_names(parts: Sequence[Sequence[PlannedOperation]], start: int, end: int) -> list[str]:
    used = {name for op in parts[end] for name in op.inputs}
    return [op.name for op in parts[start] if op.name in used]


def planned_interface(
    name: str,
    ends: tuple[int, int],
    operations: Sequence[PlannedOperation],
    gradient: str,
    window: int = 2,
) -> PlannedInterface:
    tensors = tuple(
        PlannedTensor(
            name=op.name,
            shape=op.shape or (),
            dtype="float32",
            nbytes=4 * elements(op.shape or (), BATCH),
            differentiable=op.name not in ("rotary",),
        )
        for op in operations
    )
    head = PlannedHead(hidden_layers=1, width=64, parameters=50442, forward_us=40, train_us=95)
    return PlannedInterface(
        name=name,
        source=ends[0],
        to=ends[1],
        after=operations[0].target,
        tensors=tensors,
        nbytes=sum(tensor.nbytes for tensor in tensors),
        gradient="synthetic" if gradient == "synthetic" else "exact",
        head=head if gradient == "synthetic" else None,
        window=window,
        transfer_us=120.0,
        reason="decoupling shortens the step from 3.20 ms to 1.85 ms",
    )


def make_plan(
    name: str,
    operations: Sequence[PlannedOperation],
    cuts: Sequence[int],
    gradients: Sequence[str] = (),
) -> Plan:
    """A plan of `operations` cut before each of the positions in `cuts`."""
    bounds = [0, *cuts, len(operations)]
    parts = [operations[start:end] for start, end in pairwise(bounds)]
    total = sum(op.parameters + 2000 for op in operations)
    stages, interfaces = [], []
    for i, part in enumerate(parts):
        share = sum(op.parameters + 2000 for op in part) / total
        parameters = sum(op.parameters for op in part)
        outputs = [n for j in range(i + 1, len(parts)) for n in crossing_names(parts, i, j)]
        stages.append(
            PlannedStage(
                name=f"stage{i}",
                device=i,
                inputs=tuple(n for j in range(i) for n in crossing_names(parts, j, i)),
                outputs=tuple(dict.fromkeys(outputs)) or ("output",),
                modules=tuple(op.target for op in part if op.kind == "module"),
                operations=tuple(part),
                parameters=parameters,
                parameter_bytes=4 * parameters,
                forward_flops=2 * BATCH * parameters,
                forward_us=1070.0 * share,
                backward_us=2130.0 * share,
                memory_bytes=16 * parameters + 1_500_000,
                time_share=share,
            )
        )
        for j in range(i + 1, len(parts)):
            names = crossing_names(parts, i, j)
            crossing = [op for op in part if op.name in names]
            if crossing:
                gradient = (list(gradients) or ["synthetic"])[
                    len(interfaces) % max(len(gradients), 1)
                ]
                last = crossing[-1].name
                interfaces.append(planned_interface(last, (i, j), crossing, gradient))
    step_us = 3200 * max(stage.time_share for stage in stages) + 100
    return Plan(
        dnic="0.1.0",
        model=PlannedModel(
            name=name,
            parameters=sum(op.parameters for op in operations),
            parameter_bytes=4 * sum(op.parameters for op in operations),
            batch_size=BATCH,
            operations=len(operations),
        ),
        train=PlannedTraining(batch_size=BATCH, epochs=5, optimizer=PlannedOptimizer()),
        target=PlannedTarget(shape=("B",), dtype="int64", classes=10),
        stages=tuple(stages),
        interfaces=tuple(interfaces),
        prediction=Prediction(
            profile="cpu",
            backprop_us=3200.0,
            step_us=step_us,
            speedup=3200.0 / step_us,
            bottleneck="stage0",
        ),
    )


@pytest.fixture
def mlp_plan() -> MakePlan:
    def make(*cuts: int, gradients: Sequence[str] = ()) -> Plan:
        return make_plan("MnistNet", mlp_operations(6), cuts or (11,), gradients)

    return make


@pytest.fixture
def residual_plan() -> MakePlan:
    def make(*cuts: int, gradients: Sequence[str] = ()) -> Plan:
        return make_plan("DigitsNet", residual_operations(4), cuts or (12,), gradients)

    return make


@pytest.fixture
def transformer_plan() -> MakePlan:
    def make(*cuts: int, gradients: Sequence[str] = ()) -> Plan:
        return make_plan("CharLM", transformer_operations(12), cuts or (9,), gradients)

    return make
