"""The checker of plans: what must hold for any plan, whoever wrote it.

pydantic checks the form of each part; this checks what the parts say of one another. It runs after
a plan is made and after a person edited one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from dnic.errors import PartitionError
from dnic.partition.plan import Plan, PlannedInterface
from dnic.partition.printer import print_plan

_ROUNDING = 1e-6


def check_plan(plan: Plan) -> None:
    """Check a plan.

    Every operation is in exactly one stage, uses only what its stage has, edges point forward,
    interfaces carry outputs of one stage to inputs of a later one, and shares of time add up to 1.

    Raises:
        PartitionError: the first thing that does not hold, with the printed plan.
    """
    for problem in _problems(plan):
        raise PartitionError(f"the plan is wrong: {problem}", where="\n" + print_plan(plan))


def _problems(plan: Plan) -> Iterator[str]:
    if not plan.stages:
        yield "it has no stage"
    yield from _stage_problems(plan)
    yield from _operation_problems(plan)
    for interface in plan.interfaces:
        yield from _interface_problems(interface, plan)
    yield from _context_problems(plan)
    yield from _arrival_problems(plan)
    for name, count in Counter(interface.name for interface in plan.interfaces).items():
        if count > 1:
            yield f"{count} interfaces are called {name}"
    for what, shares in (
        ("stages", [stage.time_share for stage in plan.stages]),
        ("operations", [op.time_share for stage in plan.stages for op in stage.operations]),
    ):
        if abs(sum(shares) - 1) > _ROUNDING or min(shares) < 0:
            yield f"the {what}' shares of time add up to {sum(shares):.6f}, not to 1"


def _stage_problems(plan: Plan) -> Iterator[str]:
    for i, stage in enumerate(plan.stages):
        if stage.name != f"stage{i}":
            yield f"stage {i} is called {stage.name}"
    counts = Counter(stage.device for stage in plan.stages)
    dealt = [stage.device for stage in plan.stages] == [
        i % len(counts) for i in range(len(plan.stages))
    ]
    if not (dealt and len(set(counts.values())) == 1):
        for device, count in counts.items():
            if count > 1:
                yield f"{count} stages are on device {device}"
    if plan.stages[-1].outputs != ("output",):
        yield f"the last stage returns {', '.join(plan.stages[-1].outputs)}, not the output"


def _operation_problems(plan: Plan) -> Iterator[str]:
    """Each operation in one stage, and behind everything that it uses."""
    home: dict[str, str] = {}
    for i, stage in enumerate(plan.stages):
        known = set(stage.inputs)
        for op in stage.operations:
            fetched = op.kind == "attribute" or op.repeated
            if not fetched and home.setdefault(op.name, stage.name) != stage.name:
                yield f"{op.name} is in {home[op.name]} and in {stage.name}"
            missing = [name for name in op.inputs if name not in known]
            if missing:
                yield f"{op.name} in {stage.name} uses {missing[0]}, which is not there"
            known.add(op.name)
        seen = {t.name for f in plan.interfaces if f.source == i for t in f.context}
        made = {op.name for op in stage.operations} | {"output"} | (seen & known)
        for name in stage.outputs:
            if name not in made:
                yield f"{stage.name} returns {name}, which it does not make"
        for name, count in Counter(op.name for op in stage.operations).items():
            if count > 1:
                yield f"{name} stands {count} times in {stage.name}"


def _interface_problems(interface: PlannedInterface, plan: Plan) -> Iterator[str]:
    name = interface.name
    if not 0 <= interface.source < interface.to < len(plan.stages):
        yield f"interface {name} goes from stage{interface.source} to stage{interface.to}"
        return
    source, to = plan.stages[interface.source], plan.stages[interface.to]
    if not interface.tensors:
        yield f"interface {name} carries nothing"
    for tensor in interface.tensors:
        if tensor.name not in source.outputs:
            yield f"interface {name} carries {tensor.name}, which {source.name} does not return"
        if tensor.name not in to.inputs:
            yield f"interface {name} carries {tensor.name}, which {to.name} does not take"
    needs_head = bool(interface.differentiable)
    if interface.gradient == "synthetic" and needs_head and interface.head is None:
        yield f"interface {name} is synthetic and has no head"
    waits = needs_head and not interface.predicted
    if waits and plan.train.update_probability < 1 and plan.schedule.mode == "decoupled":
        yield f"interface {name} waits for every gradient, and stages update by chance"
    if not interface.predicted and interface.return_every != 1:
        yield f"interface {name} needs every gradient and gets one in {interface.return_every}"
    if interface.predict_weights and interface.gradient != "stale":
        yield f"interface {name} predicts weights, and its gradient is {interface.gradient}"
    if interface.warmup != "exact" and interface.gradient != "stale":
        yield f"interface {name} begins with {interface.warmup}, and then is {interface.gradient}"


def _context_problems(plan: Plan) -> Iterator[str]:
    """What heads see, their stage returns."""
    for interface in plan.interfaces:
        source = plan.stages[interface.source]
        for tensor in interface.context:
            if tensor.name not in source.outputs:
                yield (
                    f"the head of {interface.name} sees {tensor.name}, "
                    f"which {source.name} does not return"
                )


def _arrival_problems(plan: Plan) -> Iterator[str]:
    """Each input of a later stage arrives exactly once, each output but the last is sent."""
    for i, stage in enumerate(plan.stages):
        arriving = Counter(t.name for f in plan.interfaces if f.to == i for t in f.tensors)
        leaving = {
            t.name
            for f in plan.interfaces
            if f.source == i
            for t in (*f.tensors, *f.context)  # what is sent, and what heads see
        }
        for name in stage.inputs if i else ():
            if arriving[name] != 1:
                yield f"{stage.name} takes {name}, which arrives {arriving[name]} times"
        for name in stage.outputs if i < len(plan.stages) - 1 else ():
            if name not in leaving:
                yield f"{stage.name} returns {name}, which nobody takes"
