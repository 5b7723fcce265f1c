"""The same algorithm in one process: every stage in lockstep, no links, no timing.

The engine is asynchronous; this is what it must compute all the same, bit for bit (on one thread).
It shares heads, their trainers and the seeds with the engine, but none of its step code: gradients
are looked up where they are computed, and lie in a list until the step at which they are due. All
microbatches of a step go forward through all stages, then all go back: in which order a process
runs them makes no difference. Use it to test the engine, and to study lags and heads without
starting processes. No evaluation and no checkpoints.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.autograd import backward
from torch.utils.data import Dataset

from dnic.runtime.batches import Batches
from dnic.runtime.bundle import Bundle, check_stages
from dnic.runtime.cells import cut_all
from dnic.runtime.inputs import Inputs
from dnic.runtime.loss import Loss, total_loss
from dnic.runtime.microbatches import Returned, microbatches, whole
from dnic.runtime.names import StateNames
from dnic.runtime.options import Mode
from dnic.runtime.plan import InterfacePlan
from dnic.runtime.record import Record
from dnic.runtime.seeds import random_state, restore_random_state, seed_everything, stage_seed
from dnic.runtime.shared import Channel, borrowed_parameters, channels, take_gradient
from dnic.runtime.sources import build_trainers, warmup_steps
from dnic.runtime.stage import check_ownership
from dnic.runtime.worker import build_optimizer, initial_model

if TYPE_CHECKING:
    from dnic.runtime.head_training import HeadTrainer


@dataclass
class _Interface:
    """An interface with its heads, and the batches whose true gradient is not due yet."""

    plan: InterfacePlan
    exact: bool
    oracle: bool
    window: int
    heads: list[HeadTrainer]
    warmup: int = 0
    waiting: deque[tuple[int, Returned]] = field(default_factory=deque)

    @property
    def names(self) -> list[str]:
        return [spec.name for spec in self.plan.differentiable]

    def learn(self) -> None:
        """Trains the heads on the oldest batch, of which all microbatches wait."""
        step = self.waiting[0][0]
        parts = []
        while self.waiting and self.waiting[0][0] == step:
            parts.append(self.waiting.popleft()[1])
        batch = whole(self.plan.differentiable, parts)
        for head, tensor, true in zip(self.heads, batch.tensors, batch.gradients, strict=True):
            head.learn(tensor, batch.target, true)


@dataclass
class _Microbatch:
    """A microbatch on its way through all stages.

    Attributes:
        batch: what the first stage takes.
        target: its targets.
        values: every tensor that crosses, with its stage's graph.
        given: per stage, its inputs as leaves.
        loss: the mean over the samples.
    """

    batch: list[Tensor]
    target: Tensor
    values: dict[str, Tensor] = field(default_factory=dict)
    given: list[dict[Any, Tensor]] = field(default_factory=list)
    loss: Tensor = field(default_factory=lambda: torch.zeros(()))


@dataclass
class _Stage:
    """A stage with its optimizer, its interfaces to stages above and its random numbers."""

    module: nn.Module
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    optimizer: torch.optim.Optimizer
    above: list[_Interface]
    random: dict[str, Any]

    @contextmanager
    def own_random_numbers(self) -> Iterator[None]:
        restore_random_state(self.random)
        yield
        self.random = random_state()


@dataclass
class _Tie:
    """An owner of parameters, a stage with copies, and gradients that are not due yet."""

    owner: _Stage
    holder: _Stage
    channel: Channel
    waiting: deque[list[Tensor]] = field(default_factory=deque)

    def share(self) -> None:
        with torch.no_grad():
            for own, copy in self._both():
                copy.copy_(own)

    def give(self) -> None:
        self.waiting.append([take_gradient(copy).clone() for _, copy in self._both()])

    def take(self) -> None:
        for (own, _), gradient in zip(self._both(), self.waiting.popleft(), strict=True):
            own.grad = gradient if own.grad is None else own.grad + gradient

    def _both(self) -> Iterator[tuple[nn.Parameter, nn.Parameter]]:
        stages = (self.owner, self.holder)
        return zip(*(self.channel.parameters(stage.module) for stage in stages), strict=True)


class Reference:
    """A bundle that trains in this process.

    Args:
        bundle: the bundle.
        stages: its `stages.py`, imported.
        build_model, loss, train_data: the model file's.
        mode: `decoupled`, `exact` or `oracle`.
        seed: None takes the plan's.
        dropout: False makes every dropout module pass its input through.
        microbatches: parts into which a batch is cut, at most.
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
    ) -> None:
        check_stages(bundle, stages.PLAN)
        torch.set_flush_denormal(True)
        self._plan = bundle.plan
        self._loss = loss
        self._seed = bundle.plan.train.seed if seed is None else seed
        # Like the processes, each stage has a model of its own: shared parts are copies.
        models = [
            initial_model(bundle, build_model, self._seed, dropout=dropout) for _ in stages.STAGES
        ]
        model, parts = models[0], [stage(models[0]) for stage in stages.STAGES]
        check_ownership(parts, bundle.plan.shared)
        self._names = StateNames.of(model, parts)
        parts = [stage(model) for stage, model in zip(stages.STAGES, models, strict=True)]
        self._stages = [self._stage(index, part, mode) for index, part in enumerate(parts)]
        self._ties = [
            _Tie(self._stages[channel.owner], self._stages[channel.holder], channel)
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
        self._inputs = Inputs(bundle.plan.samples)
        self._microbatches = microbatches
        self._step = 0
        self.losses: list[float] = []

    def _stage(self, index: int, module: nn.Module, mode: Mode) -> _Stage:
        train = self._plan.train
        others = borrowed_parameters(module, self._plan, index)
        optimizer = build_optimizer(train.optimizer, train.optimizer_options, module, others)
        seed_everything(stage_seed(self._seed, index))
        above = []
        for plan in sorted(self._plan.interfaces, key=lambda plan: plan.to):
            if plan.source == index and plan.differentiable:
                exact = mode == "exact" or plan.gradient == "exact"
                oracle = mode == "oracle" and not exact
                cpu = torch.device("cpu")
                heads = [] if exact else build_trainers(plan, self._plan.target, cpu, self._seed)
                above.append(_Interface(plan, exact, oracle, 1 if oracle else plan.window, heads))
        row = self._plan.stages[index]
        return _Stage(module, row.inputs, row.outputs, optimizer, above, random_state())

    def run(self, epochs: int | None = None, max_steps: int | None = None) -> Record:
        """Trains from the beginning.

        Args:
            epochs: None takes the plan's.
            max_steps: end after this many steps.
        """
        epochs = self._plan.train.epochs if epochs is None else epochs
        total = epochs * len(self._batches)
        total = total if max_steps is None else min(total, max_steps)
        for stage in self._stages:
            stage.module.train()
            for interface in stage.above:
                interface.warmup = 0 if interface.oracle else warmup_steps(interface.plan, total)
        for epoch in range(1, epochs + 1):
            if self._step < total:
                self._epoch(epoch, total)
        return self.record()

    def record(self) -> Record:
        """Losses so far, and the parameters as they are."""
        parameters: dict[str, Tensor] = {}
        for index, stage in enumerate(self._stages):
            parameters.update(self._names.state(stage.module, index))
        for name, kept in self._names.tied.items():
            parameters[name] = parameters[kept]
        heads = {
            f"{interface.plan.name}.{name}.{key}": value.detach()
            for stage in self._stages
            for interface in stage.above
            for name, head in zip(interface.names, interface.heads, strict=False)
            for key, value in head.head.named_parameters()
        }
        return Record(list(self.losses), parameters, heads)

    def _epoch(self, epoch: int, total: int) -> None:
        with self._stages[0].own_random_numbers():
            feed = self._batches.epoch(epoch)
            batch = next(feed)
        for position in range(len(self._batches)):
            if position:
                with self._stages[0].own_random_numbers():
                    batch = next(feed)
            self._train_step(*batch)
            if self._step == total:
                break
        for stage in self._stages:
            with stage.own_random_numbers():
                for interface in stage.above:
                    while interface.waiting:
                        interface.learn()
        for stage in self._stages:
            late = [tie for tie in self._ties if tie.owner is stage and tie.waiting]
            if late:
                stage.optimizer.zero_grad(set_to_none=True)
                for tie in late:
                    while tie.waiting:
                        tie.take()
                stage.optimizer.step()
        for tie in self._ties:
            tie.share()

    def _train_step(self, batch: Any, target: Tensor) -> None:
        parts = self._cut(batch, target)
        for tie in self._ties:
            tie.share()
        for stage in self._stages:
            with stage.own_random_numbers():
                for part in parts:
                    self._forward(stage, part)
        losses = torch.stack([part.loss.detach() for part in parts])
        self.losses.append(float(losses.mean() if len(parts) > 1 else losses[0]))
        for stage in reversed(self._stages):
            with stage.own_random_numbers():
                self._update(stage, parts)
        self._step += 1

    def _cut(self, batch: Any, target: Tensor) -> list[_Microbatch]:
        taken = self._inputs.take(batch, target.shape[0])
        number = microbatches(target.shape[0], self._microbatches)
        if number == 1:
            return [_Microbatch(taken, target)]
        rows = cut_all(taken, self._plan.samples.inputs, number)
        return [_Microbatch(*part) for part in zip(rows, target.chunk(number), strict=True)]

    def _forward(self, stage: _Stage, part: _Microbatch) -> None:
        first = stage is self._stages[0]
        leaves = dict(enumerate(part.batch)) if first else self._leaves(stage, part.values)
        output = stage.module(*leaves.values())
        part.given.append(leaves)
        if stage is self._stages[-1]:
            part.loss = total_loss(self._loss, output, part.target)
        else:
            outputs = output if isinstance(output, (tuple, list)) else (output,)
            part.values.update(zip(stage.outputs, outputs, strict=True))

    def _leaves(self, stage: _Stage, values: Mapping[str, Tensor]) -> dict[Any, Tensor]:
        """A stage's inputs as it would receive them: contiguous, without their history."""
        flows = {spec.name for row in self._plan.interfaces for spec in row.differentiable}
        return {
            name: values[name]
            .detach()
            .clone(memory_format=torch.contiguous_format)
            .requires_grad_(name in flows)
            for name in stage.inputs
        }

    def _update(self, stage: _Stage, parts: list[_Microbatch]) -> None:
        """Backward, update and head training of one stage; the stages above have done theirs."""
        stage.optimizer.zero_grad(set_to_none=True)
        for part in parts:
            if stage is self._stages[-1]:
                # The mean of the parts' means is the batch's.
                backward([part.loss], [torch.full_like(part.loss, 1 / len(parts))])
            else:
                self._backward(stage, part, len(parts))
        self._apply(stage)
        for interface in stage.above:
            lag = 0 if self._step < interface.warmup else interface.window
            while interface.waiting and interface.waiting[0][0] <= self._step - lag:
                interface.learn()

    def _backward(self, stage: _Stage, part: _Microbatch, number: int) -> None:
        """Backward of one of `number` microbatches."""
        sums: dict[str, Tensor] = {}
        for interface in stage.above:
            tensors = [part.values[name].detach() for name in interface.names]
            true = [_gradient(part.given[interface.plan.to][name]) for name in interface.names]
            used = true
            if not interface.exact:
                copies = [gradient.clone() for gradient in true]
                interface.waiting.append((self._step, Returned(tensors, part.target, copies)))
                if not interface.oracle and self._step >= interface.warmup:
                    used = [
                        head.predict(tensor, part.target, number)
                        for head, tensor in zip(interface.heads, tensors, strict=True)
                    ]
            for name, gradient in zip(interface.names, used, strict=True):
                sums[name] = sums[name] + gradient if name in sums else gradient
        backward([part.values[name] for name in sums], list(sums.values()))

    def _apply(self, stage: _Stage) -> None:
        """One update, with what the holders of this stage's parameters have found."""
        for tie in self._ties:
            if tie.holder is stage:
                tie.give()
            if tie.owner is stage and len(tie.waiting) > tie.channel.lag:
                tie.take()
        stage.optimizer.step()


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.contiguous()
