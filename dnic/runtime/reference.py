"""The same algorithm in one process: every stage in lockstep, no links, no timing.

The engine is asynchronous; this is what it must compute all the same, bit for bit (on one thread).
It shares heads, their trainers and the seeds with the engine, but none of its step code: gradients
are looked up where they are computed, and lie in a list until the step at which they are due; a
late stage's batches go forward through copies of its weights. Use it to test the engine, and to
study lags and heads without starting processes. No checkpoints; whoever wants to evaluate the
model does so between epochs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.utils.data import Dataset

from dnic.runtime.averaging import trained
from dnic.runtime.batches import Batches
from dnic.runtime.bundle import Bundle, check_stages
from dnic.runtime.cells import cut_all
from dnic.runtime.clipping import gradient_norm, joined_norm, planned_limits, scale_gradients
from dnic.runtime.crossing import Crossings, Returns, crossings, rounded
from dnic.runtime.foresight import Foresight
from dnic.runtime.forward import sent_dtypes
from dnic.runtime.inputs import Inputs
from dnic.runtime.loss import Loss, total_loss
from dnic.runtime.lr import planned_learning_rate
from dnic.runtime.microbatches import microbatches
from dnic.runtime.names import StateNames
from dnic.runtime.optimizer import build_optimizer, clear_gradients
from dnic.runtime.options import Mode
from dnic.runtime.plan import AWAITED
from dnic.runtime.precision import autocast, autocast_forward
from dnic.runtime.record import Record
from dnic.runtime.reference_parts import (
    PassingBatch,
    ReferenceInterface,
    ReferenceStage,
    Tie,
    mean_figures,
)
from dnic.runtime.replicas import Replicas
from dnic.runtime.seeds import random_state, replica_seed, seed_everything, stage_seed
from dnic.runtime.setting import Setting, build_predictor
from dnic.runtime.shared import borrowed_parameters, channels
from dnic.runtime.stage import check_ownership
from dnic.runtime.supervision import Supervision
from dnic.runtime.trial import Trial
from dnic.runtime.updates import Updates, update_probability
from dnic.runtime.worker import initial_model


class Reference:
    """A bundle that trains in this process.

    Args:
        bundle: the bundle.
        stages: its `stages.py`, imported.
        build_model, loss, train_data: the model file's.
        mode: `decoupled`, `stale`, `exact` or `oracle`.
        seed: None takes the plan's.
        dropout: False makes every dropout module pass its input through.
        microbatches: parts into which a batch is cut, at most; 1 where stages are late.
        replicas: of its stages, of which this is one column (`dnic.runtime.reference_replicas`).
    """

    def __init__(
        self,
        bundle: Bundle,
        stages: ModuleType,
        build_model: Callable[[], nn.Module],
        loss: Loss,
        train_data: Callable[[], Dataset[Any]],
        *,
        mode: Mode = "decoupled",
        seed: int | None = None,
        dropout: bool = True,
        microbatches: int = 1,
        replicas: Replicas | None = None,
    ) -> None:
        check_stages(bundle, stages.PLAN)
        torch.set_flush_denormal(True)
        self._plan = bundle.plan
        self._loss = loss
        self._replicas = replicas or Replicas()
        self._seed = bundle.plan.train.seed if seed is None else seed
        # Like the processes, each stage has a model of its own: shared parts are copies.
        models = [
            initial_model(bundle, build_model, self._seed, dropout=dropout) for _ in stages.STAGES
        ]
        model, parts = models[0], [stage(models[0]) for stage in stages.STAGES]
        check_ownership(parts, bundle.plan.shared)
        self._names = StateNames.of(model, parts)
        self._limit, limits = planned_limits(bundle.plan, mode, parts)
        parts = [stage(model) for stage, model in zip(stages.STAGES, models, strict=True)]
        crossed = crossings(bundle.plan, mode)
        self._stages = [
            self._stage(index, part, mode, crossed, limits[index])
            for index, part in enumerate(parts)
        ]
        self._ties = [
            Tie(self._stages[channel.owner], self._stages[channel.holder], channel)
            for channel in channels(bundle.plan, mode)
        ]
        with self._stages[0].own_random_numbers():
            self._batches = Batches(
                train_data(),
                bundle.plan.train.batch_size,
                shuffle=True,
                seed=self._seed,
                loader_options={},
                samples=bundle.plan.samples,
            )
        if self._replicas.index:
            for index, part in enumerate(self._stages):
                seed_everything(replica_seed(self._seed, index, self._replicas.index))
                part.random = random_state()
        self._crossed, self._in_time = crossed, 0
        self._inputs = Inputs(bundle.plan.samples)
        self._microbatches = microbatches
        self._step = 0
        self.losses: list[float] = []

    def _stage(
        self,
        index: int,
        module: nn.Module,
        mode: Mode,
        crossed: Crossings,
        limit: float | None,
    ) -> ReferenceStage:
        train = self._plan.train
        cpu = torch.device("cpu")
        if train.precision != "fp32":
            sent = sent_dtypes(self._plan, index)
            module.forward = autocast_forward(module.forward, train.precision, cpu, sent)
        others = borrowed_parameters(module, self._plan, index)
        optimizer = build_optimizer(train.optimizer, train.optimizer_options, module, others)
        seed_everything(stage_seed(self._seed, index))
        above = []
        for plan in sorted(crossed.interfaces, key=lambda plan: plan.to):
            if plan.source == index and plan.differentiable:
                predictor, oracle = None, False
                if plan.predictor not in AWAITED:
                    of_plan = self._plan.target, self._plan.output
                    setting = Setting(*of_plan, self._loss, cpu, self._seed, self._replicas)
                    predictor, oracle = build_predictor(plan, setting), mode == "oracle"
                supervision = Supervision(plan, self._replicas)
                window = 1 if oracle else plan.window + crossed.late[plan.to]
                above.append(ReferenceInterface(plan, oracle, window, predictor, supervision))
        row, late = self._plan.stages[index], crossed.late[index]
        below = [plan for plan in crossed.interfaces if plan.to == index]
        arriving = {spec.name: spec for plan in below for spec in plan.tensors}
        rate = planned_learning_rate(train, optimizer)
        if rate.needs_evaluation:
            raise ValueError("the reference evaluates nothing, which ReduceLROnPlateau needs")
        foresight = Foresight(module, optimizer) if crossed.foresees[index] else None
        updates = Updates(update_probability(train, mode), self._seed, index)
        heads = [one.supervision if one.plan.predicted else None for one in above]
        trial = Trial(module, optimizer, self._plan, heads)
        rest: tuple[Any, ...] = limit, arriving, above, late, foresight, random_state()
        rest = *rest, updates, trial
        return ReferenceStage(module, row.inputs, row.outputs, optimizer, rate, *rest)

    def run(
        self,
        epochs: int | None = None,
        max_steps: int | None = None,
        after_epoch: Callable[[int], None] | None = None,
    ) -> Record:
        """Trains from the beginning.

        Args:
            epochs: None takes the plan's.
            max_steps: end after this many steps.
            after_epoch: called with each epoch's number when it is over; may draw random numbers.
        """
        epochs = self._plan.train.epochs if epochs is None else epochs
        total = epochs * len(self._batches)
        total = total if max_steps is None else min(total, max_steps)
        self._in_time = self._crossed.in_time(total)
        for stage in self._stages:
            stage.module.train()
            for interface in stage.above:
                interface.supervision.begin(total)
                if not interface.oracle:
                    interface.returns = Returns.of(interface.plan, total, self._seed)
        for epoch in range(1, epochs + 1):
            if self._step < total:
                self._epoch(epoch, total)
                if after_epoch is not None:
                    after_epoch(epoch)
        return self.record()

    def predictions(self) -> dict[str, dict[str, float]]:
        """How good the latest predicted gradients were, by interface.

        Means of `cosine`, `norm_ratio` and `explained` over the latest batches and the tensors of
        an interface; without interfaces that learn from no true gradient.
        """
        return {
            interface.plan.name: mean_figures(interface.learnt)
            for stage in self._stages
            for interface in stage.above
            if interface.learnt
        }

    def record(self) -> Record:
        """Losses so far, and the parameters as they are."""
        parameters: dict[str, Tensor] = {}
        for index, stage in enumerate(self._stages):
            parameters.update(self._names.state(stage.module, index))
        for name, kept in self._names.tied.items():
            parameters[name] = parameters[kept]
        heads = {
            f"{interface.plan.name}.{key}": value.detach()
            for stage in self._stages
            for interface in stage.above
            if interface.predictor is not None
            for key, value in interface.predictor.parameters().items()
        }
        return Record(list(self.losses), parameters, heads)

    def turns(self) -> dict[str, list[dict[str, Any]]]:
        """What the guard of each interface with heads has changed, as a run's records have it."""
        return {
            interface.plan.name: interface.supervision.figures()["turns"]
            for stage in self._stages
            for interface in stage.above
            if interface.predictor is not None
        }

    def _epoch(self, epoch: int, total: int) -> None:
        with self._stages[0].own_random_numbers():
            feed = self._batches.epoch(epoch, self._replicas.share)
            batch = next(feed)
        for stage in self._stages:
            self._replicas.take_buffers(stage.module)
        for position in range(len(self._batches)):
            if position:
                with self._stages[0].own_random_numbers():
                    batch = next(feed)
            size = self._batches.count().size(position)
            self._train_step(*batch, self._replicas.weight(size))
            if self._step == total:
                break
        self._drain(epoch)

    def _drain(self, epoch: int) -> None:
        """What is still to come when the steps of an epoch are over."""
        for stage in reversed(self._stages):
            with stage.own_random_numbers():
                for now in range(self._step, self._step + len(stage.open)):
                    self._backward(stage)
                    stage.update(now)
                for interface in stage.above:
                    while interface.waiting:
                        interface.learn()
        self._update_late()
        for tie in self._ties:
            tie.share()
            tie.updates = 0
        for stage in self._stages:
            stage.learning_rate.trained(epoch)

    def _update_late(self) -> None:
        """The update with the holders' last gradients, of the shared parameters alone."""
        for stage in self._stages:
            late = [tie for tie in self._ties if tie.owner is stage and tie.waiting]
            if late:
                clear_gradients(stage.optimizer)
                for tie in late:
                    while tie.waiting:
                        tie.take()
                stage.clip()
                stage.optimizer.step()

    def _train_step(self, inputs: Any, target: Tensor, weight: float) -> None:
        parts = self._cut(inputs, target, weight)
        for tie in self._ties:
            tie.share()
        for stage in self._stages:
            with stage.own_random_numbers():
                for part in parts:
                    self._forward(stage, part)
                stage.open.append(parts)
        losses = torch.stack([part.loss.detach() for part in parts])
        loss = losses.mean() if len(parts) > 1 else losses[0]
        self.losses.append(float(self._replicas.average(loss.double() * weight)))
        going: list[ReferenceStage] = []
        for stage in reversed(self._stages):
            with stage.own_random_numbers():
                if len(stage.open) > (stage.late if self._step >= self._in_time else 0):
                    if self._step in stage.updates:
                        self._backward(stage)
                    else:
                        stage.pass_by()
                    going.append(stage)
        if self._limit is not None:
            norm = joined_norm([gradient_norm(stage.parameters) for stage in self._stages])
            for stage in self._stages:
                scale_gradients(stage.parameters, self._limit, norm)
        for stage in going:
            with stage.own_random_numbers():
                stage.update(self._step)
        self._step += 1

    def _cut(self, inputs: Any, target: Tensor, weight: float) -> list[PassingBatch]:
        taken = self._inputs.take(inputs, target.shape[0])
        number = microbatches(target.shape[0], self._microbatches)
        if number == 1:
            return [PassingBatch(self._step, taken, target, weight=weight)]
        rows = cut_all(taken, self._plan.samples.inputs, number)
        parts = zip(rows, target.chunk(number), strict=True)
        return [PassingBatch(self._step, row, targets, number, weight) for row, targets in parts]

    def _forward(self, stage: ReferenceStage, batch: PassingBatch) -> None:
        first = stage is self._stages[0]
        leaves = dict(enumerate(batch.taken)) if first else self._leaves(stage, batch.values)
        output = stage.called(batch, tuple(leaves.values()))
        batch.given.append(leaves)
        if stage is self._stages[-1]:
            with autocast(self._plan.train.precision, torch.device("cpu")):
                batch.loss = total_loss(self._loss, output, batch.target)
        else:
            batch.gave(stage, output)

    def _leaves(self, stage: ReferenceStage, values: Mapping[str, Tensor]) -> dict[Any, Tensor]:
        """A stage's inputs as it would receive them: contiguous, without their history."""
        flows = {spec.name for row in self._plan.interfaces for spec in row.differentiable}
        return {
            name: rounded(values[name].detach(), stage.arriving[name])
            .clone(memory_format=torch.contiguous_format)
            .requires_grad_(name in flows)
            for name in stage.inputs
        }

    def _backward(self, stage: ReferenceStage) -> None:
        """Backward of one stage's oldest batch; the stages above have done theirs."""
        clear_gradients(stage.optimizer)
        parts = stage.open.popleft()
        stage.turn(parts[0].step)
        for batch in parts:
            if stage is self._stages[-1]:
                # The mean of the parts' means is the batch's.
                backward([batch.loss], [torch.full_like(batch.loss, batch.weight / batch.number)])
            else:
                self._back(stage, batch)
        self._replicas.average_gradients(trained(stage.module))
        self._tie(stage)

    def _back(self, stage: ReferenceStage, batch: PassingBatch) -> None:
        sums: dict[str, Tensor] = {}
        for interface in stage.above:
            used = self._used(interface, batch)
            for name, gradient in zip(interface.names, used, strict=True):
                sums[name] = sums[name] + gradient if name in sums else gradient
        backward([batch.values[name] for name in sums], list(sums.values()))
        weights = batch.weights[self._stages.index(stage)]
        for name, parameter in stage.module.named_parameters():
            if name in weights:
                parameter.grad = weights[name].grad

    def _used(self, interface: ReferenceInterface, batch: PassingBatch) -> list[Tensor]:
        """The gradients with which a stage goes on."""
        true = batch.true(interface.plan)
        if interface.predictor is None:
            return true
        if interface.plan.predicted_at_first:
            if batch.step >= interface.returns.first:
                return true
            interface.at_hand.append(batch)
            return interface.predicted(batch)
        returns = batch.step in interface.returns
        awaits = returns and interface.supervision.awaits and not interface.oracle
        at_hand = not returns and not interface.predictor.needs_gradients
        if returns or at_hand:
            (interface.at_hand if at_hand else interface.waiting).append(batch)
        if awaits:
            interface.awaited = batch.step
        if interface.oracle or awaits:
            # Autograd may add to what it is given.
            return [gradient.clone() for gradient in true]
        if interface.supervision.regime == "none":
            return [torch.zeros_like(gradient) for gradient in true]
        return interface.predicted(batch)

    def _tie(self, stage: ReferenceStage) -> None:
        """Gives and takes the gradients of parameters that several stages use."""
        for tie in self._ties:
            if tie.holder is stage:
                tie.give()
            if tie.owner is stage and tie.due():
                tie.take()
