"""A plan as text, for messages: one line for each stage and each interface."""

from __future__ import annotations

from dnic.graph.shape import text
from dnic.partition.plan import Plan, PlannedInterface, PlannedStage


def print_plan(plan: Plan) -> str:
    """The plan in a few lines."""
    predicted = plan.prediction
    lines = [
        f"plan of {plan.model.name} at batch size {plan.model.batch_size}: "
        f"{predicted.step_us:.0f} us a step, backprop {predicted.backprop_us:.0f} us, "
        f"limited by {predicted.bottleneck}"
    ]
    lines += [_stage_line(stage) for stage in plan.stages]
    lines += [_interface_line(interface) for interface in plan.interfaces]
    return "\n".join(lines)


def _stage_line(stage: PlannedStage) -> str:
    operations = " ".join(op.name for op in stage.operations)
    return (
        f"  {stage.name}({', '.join(stage.inputs)}) -> {', '.join(stage.outputs)}: "
        f"{stage.time_share:.1%} of the time, {stage.parameters} parameters: {operations}"
    )


def _interface_line(interface: PlannedInterface) -> str:
    tensors = ", ".join(f"{t.name} {text(t.shape)}" for t in interface.tensors)
    return (
        f"  {interface.name}: stage{interface.source} -> stage{interface.to}: {tensors}; "
        f"{interface.gradient}, window {interface.window}"
    )
