"""Costs as measured on this machine: operations one by one, then made to add up to the whole model.

Operations say where a model's time goes, the whole model how much it is. What cannot be run here
(weights on the meta device, too little memory for a training step) leaves the operations' own sum;
what cannot be run alone leaves the analytic figure. Measurements are kept on disk by what was
measured, so that a second plan of the same model measures nothing.

Only CPUs have run this; on CUDA nothing is forked, and the whole model is not measured.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from dnic.cost.analytic import cost_model, owned_parameters
from dnic.cost.child import ChildFailed, can_fork, cores, in_child
from dnic.cost.clock import Clock, threads_set
from dnic.cost.costs import Costs, Crowding, SharePoint
from dnic.cost.kept import KeptTimes
from dnic.cost.operation import BUDGET_US, Timing
from dnic.cost.profile import DeviceProfile
from dnic.cost.standing import time_standing
from dnic.cost.survey import Survey, survey
from dnic.cost.trial import Trial, try_whole
from dnic.cost.update import update_times
from dnic.cost.walk import smaller
from dnic.cost.whole import Loss, StepTimes
from dnic.graph.graph import Graph
from dnic.runtime.plan import Precision
from dnic.trace import TracedModel

_WHOLE_TIMEOUT_S = 180.0
_SURVEY_TIMEOUT_S = 600.0


@dataclass
class MeasuredModel:
    """Costs measured here: a `CostModel`.

    Attributes:
        profile: of this machine; for what is not measured.
        traced: the fine capture of the model.
        inputs: the example inputs.
        threads: that one process computes with.
        loss, target: loss function of output and targets, and one batch of targets; what the loss
            takes is then part of the costs of the graph's `output`.
        precision: of forward and loss, where operations are measured in place and in whole steps.
        whole: whether to measure whole steps too.
        crowd: whether to measure two of them at once, on two cores.
        budget_us: for each operation at each batch size.
        progress: told what is being measured.
        kept: times that are known; None for this machine's file.
    """

    profile: DeviceProfile
    traced: TracedModel
    inputs: Any
    threads: int = 1
    loss: Loss | None = None
    target: Any = None
    precision: Precision = "fp32"
    whole: bool = True
    crowd: bool = True
    budget_us: float = BUDGET_US
    progress: Callable[[str], None] | None = None
    kept: KeptTimes | None = field(default=None)

    def costs(
        self, graph: Graph, optimizer: str = "AdamW", options: Mapping[str, Any] | None = None
    ) -> Costs:
        """Costs of every operation. The model and torch's random state are left as they were.

        Args:
            graph: of the same capture.
            optimizer: name of a `torch.optim` class.
            options: its keyword arguments.

        Raises:
            DnicError: the capture does not run on the inputs, or the graph is another one's.
        """
        base = cost_model(graph, self.profile, optimizer, options)
        known = self.kept or KeptTimes(self.threads)
        with threads_set(self.threads):
            found = self._survey(known)
            if self.whole:
                self._stand(found, known)
            updates = self._updates(graph, known, optimizer, options)
            trial = self._trial(found, known, optimizer, options) if self.whole else None
        known.save()
        costs = _of_operations(base, found, self.traced.batch_size)
        costs = replace(costs, update_us=updates or base.update_us)
        if trial is not None:
            costs = add_up(costs, trial.steps, trial.crowding, has_loss=self.loss is not None)
        costs.check(graph)
        return costs

    def _survey(self, known: KeptTimes) -> Survey:
        def work() -> Survey:
            clock = Clock(_device(self.traced), self.threads)
            return survey(self.traced, self.inputs, known, clock, self.budget_us)

        if can_fork() and self.threads == 1:
            self._tell("operations")
            try:
                found: Survey = in_child(work, timeout_s=_SURVEY_TIMEOUT_S)
            except ChildFailed:
                pass  # What went wrong shows itself when it is done here.
            else:
                for key, (numbers, lasting) in found.new.items():
                    known.put(key, numbers, lasting=lasting)
                return found
        clock = Clock(_device(self.traced), self.threads)
        return survey(self.traced, self.inputs, known, clock, self.budget_us, self.progress)

    def _stand(self, found: Survey, known: KeptTimes) -> None:
        """Put times of operations where they stand in the place of their times alone."""
        if not self._trains_here():
            return
        batch = self.traced.batch_size
        for count, times in ((batch, found.times), (found.count, found.smaller)):
            if count == 0:
                continue
            facts = [*found.keys, str(batch), str(count), *self._precision_facts()]
            key = _digest("standing", facts)
            if key not in known:
                self._tell(f"operations in place, {count} samples")
                standing = self._standing(count)
                if standing is None:
                    continue
                numbers = [us for name in times for us in standing[name]]
                known.put(key, numbers, lasting=found.lasting)
            numbers = known[key]
            for i, name in enumerate(list(times)):
                times[name] = Timing(*numbers[2 * i : 2 * i + 2])

    def _standing(self, count: int) -> dict[str, tuple[float, float]] | None:
        batch = self.traced.batch_size
        part = smaller(self.inputs, batch, count)

        def work() -> dict[str, tuple[float, float]]:
            clock = Clock(_device(self.traced), self.threads)
            found = time_standing(self.traced, part, count, clock, precision=self.precision)
            return {name: (t.forward_us, t.backward_us) for name, t in found.items()}

        try:
            found: dict[str, tuple[float, float]] = in_child(
                work, cores()[0], timeout_s=_WHOLE_TIMEOUT_S
            )
        except ChildFailed:
            return None
        return found

    def _trains_here(self) -> bool:
        """Whether a child of this process can hold a training step."""
        if any(p.is_meta for p in self.traced.module.parameters()) or self.threads != 1:
            return False
        return can_fork()

    def _updates(
        self,
        graph: Graph,
        known: KeptTimes,
        optimizer: str,
        options: Mapping[str, Any] | None,
    ) -> tuple[float, ...] | None:
        """Microseconds of the real optimizer on what each operation owns; None if it will not."""
        self._tell("optimizer")
        parameters = dict(self.traced.module.named_parameters())
        owned = [
            [parameters[name] for name in names if parameters[name].requires_grad]
            for _, names in owned_parameters(graph)
        ]
        clock = Clock(_device(self.traced), self.threads)
        return update_times(owned, optimizer, options, known, clock)

    def _trial(
        self,
        found: Survey,
        known: KeptTimes,
        optimizer: str,
        options: Mapping[str, Any] | None,
    ) -> Trial | None:
        if not self._trains_here():
            return None
        spare = cores() if self.crowd else []
        facts = [*found.keys, optimizer, repr(sorted((options or {}).items()))]
        facts += [str(self.traced.batch_size), str(self.loss is not None), str(len(spare) > 1)]
        facts += self._precision_facts()
        key = _digest("whole4", facts)
        if key not in known:
            self._tell("whole model")
            trial = try_whole(
                self.traced,
                (self.inputs, self.target),
                optimizer,
                options,
                self.loss,
                spare,
                _WHOLE_TIMEOUT_S,
                self.precision,
            )
            if trial is None:
                return None
            known.put(key, trial.numbers(), lasting=found.lasting and self.loss is None)
        return Trial.of(known[key])

    def _precision_facts(self) -> list[str]:
        return [] if self.precision == "fp32" else [self.precision]

    def _tell(self, what: str) -> None:
        if self.progress is not None:
            self.progress(what)


def _digest(what: str, facts: Sequence[str]) -> str:
    return f"{what}-" + hashlib.sha256("|".join(facts).encode()).hexdigest()[:24]


def _device(traced: TracedModel) -> torch.device:
    return next((p.device for p in traced.module.parameters()), torch.device("cpu"))


def _of_operations(base: Costs, found: Survey, batch_size: int) -> Costs:
    """The analytic costs with every time that was measured in its place."""
    share = found.count / batch_size
    names = base.operations
    full = {n: (base.forward_us[i], base.backward_us[i]) for i, n in enumerate(names)}
    fixed = {n: (base.forward_fixed_us[i], base.backward_fixed_us[i]) for i, n in enumerate(names)}
    for name, timing in found.times.items():
        full[name] = (timing.forward_us, timing.backward_us)
        part = found.smaller.get(name)
        fixed[name] = _fixed(timing, part, share) if part else _at_most(fixed[name], full[name])
    return replace(
        base,
        forward_us=tuple(full[name][0] for name in names),
        backward_us=tuple(full[name][1] for name in names),
        forward_fixed_us=tuple(fixed[name][0] for name in names),
        backward_fixed_us=tuple(fixed[name][1] for name in names),
        activation_bytes=tuple(
            found.saved_bytes.get(name, kept)
            for name, kept in zip(names, base.activation_bytes, strict=True)
        ),
        kind="measured",
        unmeasured=tuple(found.unmeasured),
    )


def _fixed(full: Timing, part: Timing, share: float) -> tuple[float, float]:
    """What would be left of both times at no samples, on a straight line; from 0 to all."""

    def left(whole_us: float, part_us: float) -> float:
        return min(max((part_us - whole_us * share) / (1 - share), 0.0), whole_us)

    return left(full.forward_us, part.forward_us), left(full.backward_us, part.backward_us)


def _at_most(times: tuple[float, float], limits: tuple[float, float]) -> tuple[float, float]:
    return min(times[0], limits[0]), min(times[1], limits[1])


def add_up(
    costs: Costs, steps: Sequence[StepTimes], crowding: Crowding | None, *, has_loss: bool = False
) -> Costs:
    """Operations scaled so that they add up to whole steps: each phase, at each share.

    Args:
        costs: of the operations alone.
        steps: of the whole model; the first at the full batch.
        crowding: what other busy cores cost it.
        has_loss: whether the steps' loss is to be found in the costs of the last operation.
    """
    if not steps:
        return costs
    full = steps[0]
    if has_loss:
        costs = _with_loss(costs, steps)
    forward = _ratio(full.forward_us, sum(costs.forward_us))
    backward = _ratio(full.backward_us, sum(costs.backward_us))
    update = _ratio(full.update_us, sum(costs.update_us))
    scaled = replace(
        costs,
        forward_us=tuple(us * forward for us in costs.forward_us),
        backward_us=tuple(us * backward for us in costs.backward_us),
        forward_fixed_us=tuple(us * forward for us in costs.forward_fixed_us),
        backward_fixed_us=tuple(us * backward for us in costs.backward_fixed_us),
        update_us=tuple(us * update for us in costs.update_us),
        crowding=crowding,
    )
    points = []
    for step in steps:
        part = scaled.at(step.share)
        points.append(
            SharePoint(
                step.share,
                _ratio(step.forward_us, sum(part.forward_us)),
                _ratio(step.backward_us, sum(part.backward_us)),
            )
        )
    return replace(scaled, curve=tuple(points))


def _with_loss(costs: Costs, steps: Sequence[StepTimes]) -> Costs:
    """The loss's time in the place of the last operation's, the graph's `output`."""
    full = steps[0]
    whole = Timing(full.loss_forward_us, full.loss_backward_us)
    fixed = (0.0, 0.0)
    if len(steps) > 1:
        last = steps[-1]
        fixed = _fixed(whole, Timing(last.loss_forward_us, last.loss_backward_us), last.share)
    return replace(
        costs,
        forward_us=(*costs.forward_us[:-1], whole.forward_us),
        backward_us=(*costs.backward_us[:-1], whole.backward_us),
        forward_fixed_us=(*costs.forward_fixed_us[:-1], fixed[0]),
        backward_fixed_us=(*costs.backward_fixed_us[:-1], fixed[1]),
    )


def _ratio(measured_us: float, added_us: float) -> float:
    return measured_us / added_us if measured_us > 0 and added_us > 0 else 1.0
