"""What is decided of a model: every way to train it, the verdict, and the way that is emitted."""

from __future__ import annotations

from dataclasses import dataclass

from dnic.cost import Costs
from dnic.graph.graph import Graph
from dnic.partition.alternative import Alternative
from dnic.partition.alternatives import alternatives
from dnic.partition.choose import place
from dnic.partition.plan import (
    Plan,
    PlannedAlternative,
    PlannedSchedule,
    PlannedTarget,
    PlannedVerdict,
)
from dnic.partition.request import PartitionRequest
from dnic.partition.verdict import Verdict, chosen, judge


@dataclass(frozen=True)
class Decision:
    """The answer to a request.

    Attributes:
        request: what was asked for.
        found: every way, fastest first; those that do not fit last.
        verdict: whether to decouple.
        chosen: the way that the plan is for.
    """

    request: PartitionRequest
    found: tuple[Alternative, ...]
    verdict: Verdict
    chosen: Alternative

    def told(self, plan: Plan) -> Plan:
        """The plan with its schedule, and with what was predicted of it and of everything else."""
        outcome, predicted = self.chosen.outcome, plan.prediction
        backprop_us = next(a.outcome.step_us for a in self.found if a.name == "one_device")
        prediction = predicted.model_copy(
            update={
                "backprop_us": backprop_us,
                "step_us": outcome.step_us,
                "speedup": backprop_us / outcome.step_us if outcome.step_us else 1.0,
                "bottleneck": outcome.bottleneck,
                "verdict": PlannedVerdict(
                    decouple=self.verdict.decouple,
                    speedup=self.verdict.speedup,
                    best=self.verdict.best,
                    reason=self.verdict.reason,
                ),
                "alternatives": tuple(planned_alternative(a) for a in self.found),
            }
        )
        return plan.model_copy(update={"prediction": prediction, "schedule": self.schedule})

    @property
    def schedule(self) -> PlannedSchedule:
        """What the bundle runs as."""
        mode = self.chosen.mode or "decoupled"
        if mode == "ddp":
            return PlannedSchedule(mode=mode, processes=self.chosen.outcome.devices)
        replicas = self.chosen.replicas or 1
        if replicas > 1:
            return PlannedSchedule(
                mode=mode,
                microbatches=self.chosen.microbatches,
                replicas=replicas,
                shard=self.request.shard,
            )
        asked = self.request.schedule
        if self.chosen.name == "naive" and asked in ("auto", "decoupled"):
            mode = "decoupled"  # Interfaces that wait, each as the plan says.
        if mode == "backprop" and asked != "backprop" and not self.request.free:
            mode = "decoupled"  # One stage is the least of them.
        dealt = self.chosen.outcome.devices if self.chosen.placement.chunks > 1 else None
        return PlannedSchedule(mode=mode, processes=dealt, microbatches=self.chosen.microbatches)

    def __str__(self) -> str:
        lines = [f"{self.verdict.word}: {self.verdict.reason}"]
        for a in self.found:
            mark = "*" if a is self.chosen else " "
            cuts = ", ".join(map(str, a.placement.cuts)) or "none"
            lines.append(
                f"{mark} {a.name:<20}{a.samples_per_s:>14,.1f} samples/s  cuts: {cuts}  {a.unfit}"
            )
        return "\n".join(lines)


def decide(
    graph: Graph,
    costs: Costs,
    request: PartitionRequest,
    target: PlannedTarget | None,
    *,
    loader_us: float = 0.0,
) -> Decision:
    """Every way to train, the verdict, and what is to be emitted.

    Args:
        graph: the fine capture.
        costs: of its operations on a device of speed 1, reading batches included.
        request: what is asked for.
        target: what training targets look like; None without training data.
        loader_us: reading a batch: what a pipeline's last stage does too.

    Raises:
        SpecError, PartitionError: what was asked for cannot be had; says why.
    """
    found = alternatives(graph, costs, request, target, loader_us=loader_us)
    if not any(alternative.runs for alternative in found):
        place(graph, costs, request, target=target)  # Says what is missing, and what would fit.
    verdict = judge(found, request, request.slowest_link(costs.profile.link))
    return Decision(request, found, verdict, chosen(found, verdict, request))


def planned_alternative(found: Alternative) -> PlannedAlternative:
    """An alternative as data."""
    outcome = found.outcome
    return PlannedAlternative(
        name=found.name,
        mode=found.mode,
        samples_per_s=outcome.samples_per_s,
        useful_samples_per_s=found.useful_samples_per_s,
        step_us=outcome.step_us,
        devices=outcome.devices,
        stages=found.placement.stages,
        microbatches=found.microbatches,
        windows=found.windows,
        peak_memory_bytes=max(outcome.peak_memory_bytes),
        memory_bytes=outcome.peak_memory_bytes,
        busy=outcome.busy,
        bubble=outcome.bubble,
        link_bytes=tuple(there + back for there, back in outcome.link_bytes),
        staleness=outcome.staleness,
        bottleneck=outcome.bottleneck,
        unfit=found.unfit,
        how=outcome.how,
        proven=found.placement.proven,
    )
